"""Renderers are loaded from a real Redis as workers name them, and what is not there is tried and left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.worker import pack_artifact
from hanmaru_gateway.rendering.store import RendererStore
from hanmaru_testing.fleet import byte_artifact
from hanmaru_testing.gateway import eventually
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

pytestmark = pytest.mark.timeout(60)
MODEL = ModelId("local/tiny")


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis(port=redis_server.port)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[RendererStore]:
    """It loads what it is asked for."""
    with ThreadPoolExecutor(1) as executor:
        made = RendererStore(redis, executor, time.monotonic)
        loading = asyncio.create_task(made.run())
        yield made
        while not loading.done():  # before Python 3.12 redis-py can swallow a cancellation
            loading.cancel()
            await asyncio.wait([loading], timeout=0.1)


async def test_a_store_is_complete_with_the_first_look_that_finds_everything_loaded(
    redis: Redis, store: RendererStore
) -> None:
    digest, packed = pack_artifact(byte_artifact())
    await redis.set(redis_keys.artifact(MODEL, digest), packed)
    store.want({digest: MODEL})
    assert not store.was_complete
    await eventually(lambda: store.get(digest))
    assert not store.was_complete, "nobody has looked since"
    store.want({digest: MODEL})
    assert store.was_complete
    store.want({"0" * 64: MODEL})
    assert store.was_complete, "what comes later makes no gateway unready"


async def test_an_artifact_that_is_not_there_is_tried_and_then_not_waited_for(store: RendererStore) -> None:
    store.want({"0" * 64: MODEL})
    assert not store.was_complete

    def looked() -> bool:
        store.want({"0" * 64: MODEL})
        return store.was_complete

    await eventually(looked)
    assert store.get("0" * 64) is None


async def test_where_no_worker_is_nothing_is_missing(store: RendererStore) -> None:
    store.want({})
    assert store.was_complete
