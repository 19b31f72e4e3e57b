"""What the gateway's tests share: one Redis a module, and a gateway in front of scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hanmaru_testing.gateway import Rig, running_gateway
from hanmaru_testing.redis_server import RedisServer

RigMaker = Callable[..., AbstractAsyncContextManager[Rig]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that replicas run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """With the ACL users of the product, so that a command the gateway may not use fails its test."""
    with RedisServer(acl=True) as server:
        yield server


@pytest.fixture
def make_rig(redis_server: RedisServer, tmp_path: Path) -> RigMaker:
    """How a test makes the gateway it wants; `running_gateway` has the knobs."""

    def make(**how: Any) -> AbstractAsyncContextManager[Rig]:
        return running_gateway(redis_server, tmp_path, **how)

    return make


@pytest.fixture
async def rig(make_rig: RigMaker) -> AsyncIterator[Rig]:
    """One worker, no limits."""
    async with make_rig() as made:
        yield made
