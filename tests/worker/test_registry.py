"""The registry against a real Redis, as the role `worker` of our ACL rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import redis
from hanmaru_contracts import keys, redis_keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId, ReplicaId, TenantId
from hanmaru_contracts.wire.worker import (
    LEASE_MS,
    SIGNATURE_LIFE_MS,
    Capabilities,
    Load,
    ModelArtifact,
    WorkerRecord,
    pack_artifact,
    seal,
    unpack_artifact,
    unseal,
)
from hanmaru_redis.settings import access_to
from hanmaru_testing.redis_server import RedisServer
from hanmaru_worker.registry import PackedArtifact, Registry, connect
from redis.asyncio import Redis

SECRET = b"s" * 32
MODEL = ModelId("team/exaone")
REPLICA = ReplicaId("worker-0")
REPLICA_KEY = keys.replica_key(SECRET, MODEL, REPLICA)
LEASE = redis_keys.worker_lease(MODEL, REPLICA)
ARTIFACT = PackedArtifact(*pack_artifact(ModelArtifact(tokenizer=b"{}", chat_template="T")))
ARTIFACT_KEY = redis_keys.artifact(MODEL, ARTIFACT.digest)
RECORD = WorkerRecord(
    model=MODEL,
    replica=REPLICA,
    route="exaone",
    pool="local",
    address="127.0.0.1:30000",
    artifact=ARTIFACT.digest,
    capabilities=Capabilities(context_tokens=4096, dtype="float32", page_size=1, sliding_window_tokens=128),
    expires_at_ms=0,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    """What anyone with all rights sees."""
    with server.client() as client:
        client.flushall()
        yield client


def open_client(server: RedisServer) -> Redis:
    return connect(access_to(server.url, "worker", server.passwords["worker"]))


@pytest.fixture
async def registry(server: RedisServer, store: redis.Redis) -> AsyncIterator[Registry]:
    registry = Registry(open_client(server), REPLICA_KEY, MODEL, ARTIFACT)
    yield registry
    await registry.close()


def believed(store: redis.Redis, now_ms: int | None = None) -> WorkerRecord | None:
    """The record as a gateway would take it."""
    sealed: Any = store.get(LEASE)
    return sealed and unseal(sealed, SECRET, MODEL, REPLICA, now_ms or int(time.time() * 1000))


async def test_a_registration_is_found_signed_and_with_its_artifact(registry: Registry, store: redis.Redis) -> None:
    load = Load(running_requests=2, queued_requests=1, kv_load_ratio=0.5)
    assert await registry.renew(msgspec.structs.replace(RECORD, load=load)) is True
    record = believed(store)
    assert record is not None
    assert record.load == load
    assert abs(record.expires_at_ms - time.time() * 1000 - SIGNATURE_LIFE_MS) < 5_000
    assert 0 < store.pttl(LEASE) <= LEASE_MS
    assert store.smembers(redis_keys.MODELS) == {MODEL.encode()}
    ((member, score),) = store.zrange(redis_keys.workers(MODEL), 0, -1, withscores=True)
    assert member == REPLICA.encode()
    assert abs(score - store.time()[0]) < 3
    packed: Any = store.get(ARTIFACT_KEY)
    assert unpack_artifact(packed, ARTIFACT.digest).chat_template == "T"
    assert store.ttl(ARTIFACT_KEY) > 3600


async def test_a_renewal_says_whether_the_lease_was_still_held(registry: Registry, store: redis.Redis) -> None:
    assert [await registry.renew(RECORD) for _ in range(3)] == [True, False, False]
    store.delete(LEASE)
    assert await registry.renew(RECORD) is True


async def test_a_lease_that_is_not_renewed_expires(registry: Registry, store: redis.Redis) -> None:
    await registry.renew(RECORD)
    assert store.pexpire(LEASE, 200)
    await asyncio.sleep(0.3)
    assert believed(store) is None


async def test_an_artifact_is_written_once_and_again_when_lost(registry: Registry, store: redis.Redis) -> None:
    await registry.renew(RECORD)
    store.set(ARTIFACT_KEY, b"left as it is", keepttl=True)
    await registry.renew(RECORD)
    assert store.get(ARTIFACT_KEY) == b"left as it is"
    store.delete(ARTIFACT_KEY)
    await registry.renew(RECORD)
    assert store.get(ARTIFACT_KEY) == ARTIFACT.packed


async def test_an_emptied_redis_is_filled_by_the_next_renewal(registry: Registry, store: redis.Redis) -> None:
    await registry.renew(RECORD)
    before = set(store.scan_iter())
    store.flushall()
    assert await registry.renew(RECORD) is True
    assert set(store.scan_iter()) == before


async def test_removal_leaves_the_artifact_only(registry: Registry, store: redis.Redis) -> None:
    await registry.renew(RECORD)
    await registry.remove(RECORD)
    assert set(store.scan_iter()) == {redis_keys.MODELS.encode(), ARTIFACT_KEY.encode()}


async def test_workers_that_were_silent_for_an_hour_are_forgotten(registry: Registry, store: redis.Redis) -> None:
    now_s = int(store.time()[0])  # type: ignore[index]
    store.zadd(redis_keys.workers(MODEL), {"long-gone": now_s - 7200, "just-gone": now_s - 60})
    await registry.renew(RECORD)
    members: Any = store.zrange(redis_keys.workers(MODEL), 0, -1)
    assert set(members) == {b"just-gone", b"worker-0"}


@pytest.mark.parametrize(
    "forgery",
    [
        pytest.param(seal(RECORD, b"f" * 32), id="another key"),
        pytest.param(seal(RECORD, keys.replica_key(SECRET, MODEL, ReplicaId("worker-1"))), id="another replica's key"),
        pytest.param(b"nonsense", id="no record"),
    ],
)
async def test_a_forged_record_is_not_believed_and_soon_overwritten(
    registry: Registry, store: redis.Redis, forgery: bytes
) -> None:
    store.set(LEASE, forgery)
    assert believed(store, now_ms=1) is None
    await registry.renew(RECORD)
    assert believed(store) is not None


async def test_a_copied_record_is_worth_nothing_after_its_signature_has_expired(
    registry: Registry, store: redis.Redis
) -> None:
    await registry.renew(RECORD)
    assert believed(store, now_ms=int(time.time() * 1000) + SIGNATURE_LIFE_MS + 1_000) is None


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_lost_redis_is_told_quickly_and_found_again(hangs: bool) -> None:
    with RedisServer(acl=True) as server:
        registry = Registry(open_client(server), REPLICA_KEY, MODEL, ARTIFACT)
        await registry.renew(RECORD)
        server.pause() if hangs else server.stop()
        began = time.monotonic()
        with pytest.raises(HanmaruError) as lost:
            await registry.renew(RECORD)
        assert lost.value.code is ErrorCode.STORE_UNAVAILABLE
        assert time.monotonic() - began < 4
        server.resume() if hangs else server.start()
        await registry.renew(RECORD)
        with server.client() as client:
            assert client.exists(LEASE, ARTIFACT_KEY) == 2
        await registry.close()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("EVAL", "return 1", "0"),
        ("SHUTDOWN", "NOSAVE"),
        ("HGETALL", redis_keys.TENANTS),
        ("GET", redis_keys.TENANTS_VERSION),
        ("SET", redis_keys.TENANTS_VERSION, "x"),
        ("GET", redis_keys.quota(TenantId("t"), "default")),
        ("DEL", redis_keys.quota(TenantId("t"), "default")),
        ("SET", "anything", "x"),
    ],
)
def test_a_worker_may_do_nothing_else_in_redis(server: RedisServer, command: tuple[str, ...]) -> None:
    with server.client("worker") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_a_stranger_does_not_get_in(server: RedisServer) -> None:
    wrong = redis.Redis(host="127.0.0.1", port=server.port, username="worker", password="wrong")
    with wrong, pytest.raises(redis.exceptions.AuthenticationError):
        wrong.ping()
