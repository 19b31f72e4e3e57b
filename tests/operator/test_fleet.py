"""What is known of replicas from Redis: believed only when signed, and swept when nobody owns it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import Load
from hanmaru_operator.fleet import Fleet
from hanmaru_operator.types import LeaseFacts
from hanmaru_testing.fleet import RegisteredWorker, worker
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

pytestmark = pytest.mark.timeout(60)

SECRET = b"s" * 32
MODEL, OTHER = ModelId("ml/tiny"), ModelId("ml/other")

WorkerMaker = Callable[..., RegisteredWorker]


@pytest.fixture
def fleet(operator_redis: Redis) -> Fleet:
    return Fleet(operator_redis, SECRET, now_ms=lambda: time.time_ns() // 1_000_000)


@pytest.fixture
def make(admin_redis: Redis) -> WorkerMaker:
    def maker(replica: str, model: str = MODEL, **how: Any) -> RegisteredWorker:
        return worker(admin_redis, SECRET, model=model, replica=replica, **how)

    return maker


async def test_loads_of_the_models_asked_for_are_read(fleet: Fleet, make: WorkerMaker) -> None:
    await make("busy", load=Load(running_requests=3, queued_requests=2)).write()
    draining = make("draining")
    draining.record = msgspec.structs.replace(draining.record, draining=True)
    await draining.write()
    await make("elsewhere", OTHER).write()
    assert await fleet.read([MODEL, ModelId("ml/none")]) == {
        MODEL: {
            "busy": LeaseFacts(is_alive=True, running_requests=3, queued_requests=2),
            "draining": LeaseFacts(is_alive=True, is_draining=True),
        },
        "ml/none": {},
    }
    assert await fleet.read([]) == {}


async def test_a_replica_whose_lease_ended_is_not_alive(fleet: Fleet, make: WorkerMaker, admin_redis: Redis) -> None:
    await make("w").write()
    await admin_redis.delete(redis_keys.worker_lease(MODEL, ReplicaId("w")))
    assert await fleet.read([MODEL]) == {MODEL: {"w": LeaseFacts(is_alive=False)}}


@pytest.mark.parametrize("why", ["another's key", "damaged", "expired"])
async def test_what_a_replica_did_not_sign_says_nothing(
    operator_redis: Redis, make: WorkerMaker, admin_redis: Redis, why: str
) -> None:
    one = make("w", load=Load(running_requests=9))
    await one.write(signed_with=b"x" * 32 if why == "another's key" else None)
    if why == "damaged":
        await admin_redis.set(redis_keys.worker_lease(MODEL, ReplicaId("w")), b"\xff\x00")
    ahead_ms = 3_600_000 if why == "expired" else 0
    fleet = Fleet(operator_redis, SECRET, now_ms=lambda: time.time_ns() // 1_000_000 + ahead_ms)
    assert await fleet.read([MODEL]) == {MODEL: {"w": LeaseFacts(is_alive=False)}}


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_a_redis_that_does_not_answer_says_nothing_about_anybody(
    fleet: Fleet, make: WorkerMaker, redis_server: RedisServer, fault: str
) -> None:
    await make("w").write()
    getattr(redis_server, fault)()
    start = time.monotonic()
    assert await fleet.read([MODEL]) is None
    assert await fleet.sweep({}) is None
    assert await fleet.forget(MODEL, ReplicaId("w")) is False
    assert time.monotonic() - start < 10
    if fault == "stop":
        redis_server.start()


async def test_a_redis_that_hangs_is_waited_for_once_and_asked_again_a_second_later(
    operator_redis: Redis, make: WorkerMaker, redis_server: RedisServer
) -> None:
    await make("w").write()
    now_ms = time.time_ns() // 1_000_000
    fleet = Fleet(operator_redis, SECRET, now_ms=lambda: now_ms)
    redis_server.pause()
    assert await fleet.read([MODEL]) is None
    start = time.monotonic()
    assert [await fleet.read([MODEL]) for _ in range(100)] == [None] * 100
    assert time.monotonic() - start < 0.5
    redis_server.resume()
    now_ms += 1001
    assert await fleet.read([MODEL]) == {MODEL: {"w": LeaseFacts(is_alive=True)}}


async def test_a_forgotten_replica_leaves_nothing_behind(fleet: Fleet, make: WorkerMaker) -> None:
    for name in ("gone", "stays"):
        await make(name).write()
    assert await fleet.forget(MODEL, ReplicaId("gone"))
    leases = await fleet.read([MODEL])
    assert leases is not None
    assert leases[MODEL].keys() == {"stays"}


async def test_a_sweep_takes_the_dead_that_nobody_owns_and_nobody_else(
    fleet: Fleet, make: WorkerMaker, admin_redis: Redis
) -> None:
    for name, model in (("owned", MODEL), ("owned-dead", MODEL), ("dead", MODEL), ("dead", OTHER), ("alive", "ml/x")):
        await make(name, model).write()
    for model, name in ((MODEL, "owned-dead"), (MODEL, "dead"), (OTHER, "dead")):
        await admin_redis.delete(redis_keys.worker_lease(model, ReplicaId(name)))
    await admin_redis.sadd(redis_keys.MODELS, "ml/empty", "ml/planned", b"\xff")
    known = {MODEL: {ReplicaId("owned"), ReplicaId("owned-dead")}, ModelId("ml/planned"): set()}
    assert await fleet.sweep(known) == 2
    leases = await fleet.read([MODEL, OTHER, ModelId("ml/x")])
    assert leases is not None
    assert {model: set(found) for model, found in leases.items()} == {
        MODEL: {"owned", "owned-dead"},
        OTHER: set(),
        "ml/x": {"alive"},
    }
    assert await admin_redis.smembers(redis_keys.MODELS) == {MODEL.encode(), b"ml/x", b"ml/planned", b"\xff"}
    assert await fleet.sweep(known) == 0
