"""Redis for those of the operator's tests that ask for it: emptied before each, reached with the operator's role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from hanmaru_operator.store import connect
from hanmaru_redis.settings import access_to
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis


@pytest.fixture(scope="session")
def shared_redis_server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """Runs and is empty when the test starts, whatever the last one did to it."""
    shared_redis_server.restart_empty()
    return shared_redis_server


@pytest.fixture
async def operator_redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """As the operator's user."""
    client = connect(access_to(redis_server.url, "operator", redis_server.passwords["operator"]))
    yield client
    await client.aclose()


@pytest.fixture
async def admin_redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """As the all-powerful default user."""
    client = connect(access_to(redis_server.url))
    yield client
    await client.aclose()
