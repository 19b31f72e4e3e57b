"""A pod's first process ends its replica by a connection, and knows when it has ended."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hanmaru_gateway.leaving import ask_to_leave, leave_when_asked

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def door() -> Iterator[Path]:
    """A short path, as Unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="hml-", dir="/tmp") as folder:
        yield Path(folder) / "leave"


async def test_who_asks_is_told_when_the_replica_has_left(door: Path) -> None:
    asked, may_end = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        asked.set()
        await may_end.wait()

    async with leave_when_asked(door, leave):
        asking = asyncio.create_task(asyncio.to_thread(ask_to_leave, door, 30.0))
        await asked.wait()
        assert not asking.done()
        may_end.set()
        assert await asking


async def test_a_replica_that_takes_too_long_is_not_waited_for(door: Path) -> None:
    never = asyncio.Event()

    async def leave() -> None:
        await never.wait()

    async with leave_when_asked(door, leave):
        assert not await asyncio.to_thread(ask_to_leave, door, 0.2)
        never.set()


@pytest.mark.parametrize("left_over", [True, False])
def test_without_a_replica_nobody_waits(door: Path, left_over: bool) -> None:
    if left_over:
        door.touch()
    assert not ask_to_leave(door, 30.0)


async def test_a_gateway_that_leaves_is_unready_and_serves_on(make_rig: Any) -> None:
    async with make_rig() as rig:
        async with rig.client.get("/health") as response:
            assert "connection" not in response.headers
        rig.gateway.leave()
        async with rig.client.get("/ready") as response:
            assert response.status == 503
            assert await response.json() == {"ready": False, "missing": ["leaving"]}
        for stream in (False, True):
            async with await rig.chat(stream=stream, max_tokens=3) as response:
                assert response.status == 200
                # The next request of this client goes to whoever is ready then.
                assert response.headers["connection"] == "close"
                await response.read()
        rig.gateway.require_health()
