"""One real Redis for these tests, emptied before each, reached with the gateway's own role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis


@pytest.fixture(scope="session")
def shared_redis_server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> Iterator[RedisServer]:
    """Runs and is empty when the test starts, whatever the last one did to it."""
    shared_redis_server.restart_empty()
    yield shared_redis_server
    shared_redis_server.resume()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis(
        host="127.0.0.1", port=redis_server.port, username="gateway", password=redis_server.passwords["gateway"]
    )
    yield client
    await client.aclose()
