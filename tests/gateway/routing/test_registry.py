"""The registry on a real Redis: who is believed, how long, with what load, and when waiting for a worker ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.directory import routes_table
from hanmaru_contracts.wire.worker import LEASE_MS, Load
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.routing.registry import Registry, StoreState
from hanmaru_gateway.routing.snapshot import WorkerSnapshot
from hanmaru_testing.fleet import RegisteredWorker, byte_artifact, worker
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

SECRET = b"s" * 32
MODEL = ModelId("local/tiny")
pytestmark = pytest.mark.timeout(60)


@dataclass
class Bench:
    """A registry whose clock the test moves."""

    redis: Redis
    """As the gateway's user."""
    admin: Redis
    clock_s: float = 1000.0
    wall_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    missing: set[str] = field(default_factory=set)
    wanted: dict[str, ModelId] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = Registry(
            self.redis,
            SECRET,
            want_artifacts=self.wanted.update,
            has_artifact=lambda digest: digest not in self.missing,
            meters=Meters(),
            now=lambda: self.clock_s,
            now_ms=lambda: self.wall_ms,
            interval_s=0.01,
        )

    async def poll(self, after_s: float = 0.0) -> None:
        self.clock_s += after_s
        await self.registry.poll()

    def taking(self, model: ModelId = MODEL) -> list[WorkerSnapshot]:
        served = self.registry.fleet.models.get(model)
        return self.registry.workers(served) if served else []

    def names(self) -> list[str]:
        return [one.replica for one in self.taking()]

    def worker(self, name: str = "w0", **how: Any) -> RegisteredWorker:
        return worker(self.admin, SECRET, replica=name, **how)


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    gateway = Redis(port=redis_server.port, username="gateway", password=redis_server.passwords["gateway"])
    admin = Redis(port=redis_server.port)
    await admin.flushall()
    yield Bench(gateway, admin)
    await gateway.aclose()
    await admin.aclose()


async def test_a_new_worker_is_seen_in_one_poll(bench: Bench) -> None:
    await bench.worker().write()
    await bench.poll()
    assert bench.names() == ["w0"]
    assert bench.wanted == {bench.taking()[0].record.artifact: MODEL}
    assert bench.registry.fleet.routes == {"tiny": (MODEL,)}


async def test_a_worker_whose_artifact_is_not_loaded_takes_nothing(bench: Bench) -> None:
    one = bench.worker()
    bench.missing.add(one.record.artifact)
    await one.write()
    await bench.poll()
    assert bench.names() == []
    bench.missing.clear()
    await bench.poll()
    assert bench.names() == ["w0"]


@pytest.mark.parametrize("why", ["another's key", "damaged", "expired", "another model's"])
async def test_what_a_replica_did_not_sign_is_ignored(bench: Bench, why: str) -> None:
    one = bench.worker()
    await one.write(signed_with=b"x" * 32 if why == "another's key" else None)
    lease = redis_keys.worker_lease(MODEL, one.record.replica)
    if why == "damaged":
        sealed = await one.redis.get(lease)
        assert isinstance(sealed, bytes)
        await one.redis.set(lease, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    elif why == "another model's":
        sealed = await one.redis.get(lease)
        assert isinstance(sealed, bytes)
        other = ModelId("local/other")
        await one.redis.delete(lease)
        await one.redis.sadd(redis_keys.MODELS, other)
        await one.redis.zadd(redis_keys.workers(other), {"w0": 1})
        await one.redis.set(redis_keys.worker_lease(other, one.record.replica), sealed)
    elif why == "expired":
        bench.wall_ms += 3_600_000
    await bench.poll()
    assert not bench.registry.fleet.models


async def test_a_gone_lease_takes_nothing_at_once(bench: Bench) -> None:
    one = bench.worker()
    await one.write()
    await bench.poll()
    await one.redis.delete(redis_keys.worker_lease(MODEL, one.record.replica))
    await bench.poll(0.25)
    assert bench.names() == []
    assert bench.registry.fleet.routes == {"tiny": (MODEL,)}


async def test_draining_workers_take_nothing(bench: Bench) -> None:
    one = bench.worker()
    await one.write()
    await bench.poll()
    one.record = msgspec.structs.replace(one.record, draining=True)
    await one.write()
    await bench.poll()
    assert bench.names() == []


async def test_the_last_view_lives_as_long_as_leases_when_redis_is_away(
    bench: Bench, redis_server: RedisServer
) -> None:
    await bench.worker().write()
    await bench.poll()
    redis_server.stop()
    try:
        with pytest.raises(HanmaruError):
            await bench.poll(1.0)
        assert bench.registry.state is StoreState.STALE  # nothing new is admitted
        assert bench.names() == ["w0"]  # what was admitted may be tried again elsewhere
        bench.clock_s += LEASE_MS / 1000
        assert bench.names() == []
    finally:
        redis_server.start()


async def test_a_suspected_worker_takes_nothing_until_it_renews(bench: Bench) -> None:
    one = bench.worker()
    await one.write()
    await bench.poll()
    bench.registry.suspect(bench.taking()[0])
    assert bench.names() == []
    await bench.poll()
    assert bench.names() == []
    await asyncio.sleep(0.005)  # records are told apart by the millisecond they expire in
    await one.write()
    await bench.poll()
    assert bench.names() == ["w0"]


async def test_load_is_what_was_reported_and_what_was_sent_since(bench: Bench) -> None:
    one = bench.worker(load=Load(running_requests=2, queued_requests=1))
    await one.write()
    await bench.poll()
    assert [w.load_requests for w in bench.taking()] == [3]
    seats = [bench.registry.take(bench.taking()[0]) for _ in range(4)]
    assert [w.load_requests for w in bench.taking()] == [7]
    one.record = msgspec.structs.replace(one.record, load=Load(running_requests=6))
    await one.write()
    await bench.poll()
    assert [w.load_requests for w in bench.taking()] == [6]
    for seat in seats[:3]:
        seat.release()
        seat.release()
    assert [w.load_requests for w in bench.taking()] == [3]
    assert bench.registry.inflight_requests == 1


async def test_waiting_ends_once_a_worker_is_gone_for_good(bench: Bench) -> None:
    one = bench.worker()
    await one.write()
    await bench.poll()
    seat = bench.registry.take(bench.taking()[0])

    async def wait() -> None:
        async with asyncio.timeout(30) as deadline:
            seat.waits(deadline)
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await one.remove()
    await bench.poll(0.25)
    await bench.poll(4.0)
    assert not waiting.done()
    await bench.poll(1.1)
    with pytest.raises(TimeoutError):
        await waiting
    assert seat.is_lost
    with pytest.raises(TimeoutError):
        await wait()


async def test_an_emptied_redis_ends_no_waiting_while_workers_come_back(bench: Bench) -> None:
    one = bench.worker()
    await one.write()
    await bench.poll()
    seat = bench.registry.take(bench.taking()[0])
    await one.redis.flushall()
    await bench.poll(60.0)  # it was away for a minute and came back empty
    await bench.poll(1.0)
    await one.write()
    await bench.poll(0.25)
    await bench.poll(10.0)
    assert not seat.is_lost
    assert bench.names() == ["w0"]


THIEF = ModelId("blue/tiny")


async def _own(bench: Bench, routes: dict[str, dict[ModelId, int]]) -> None:
    """Say, as the operator does, whose the routes are."""
    table = routes_table(routes)
    async with bench.admin.pipeline(transaction=True) as pipe:
        pipe.delete(table.key)
        if table.entries:
            pipe.hset(table.key, mapping=dict(table.entries))
        pipe.set(table.version_key, table.digest)
        await pipe.execute()


async def test_while_nobody_owns_routes_workers_are_believed(bench: Bench) -> None:
    await bench.worker().write()
    await bench.worker(model=THIEF).write()
    await bench.poll()
    assert bench.registry.fleet.routes == {"tiny": (THIEF, MODEL)}
    assert bench.registry.fleet.weights is None


async def test_who_registers_under_anothers_route_takes_nothing(bench: Bench) -> None:
    await bench.worker().write()
    await bench.worker(model=THIEF).write()
    await bench.worker("w1", route="unclaimed").write()
    await _own(bench, {"tiny": {MODEL: 100}, "idle": {ModelId("local/idle"): 5}})
    await bench.poll()
    assert bench.names() == ["w0"], "nor does a worker of the owner under a name nobody claimed"
    assert bench.taking(THIEF) == []
    assert bench.registry.fleet.routes == {"tiny": (MODEL,), "idle": (ModelId("local/idle"),)}


async def test_a_route_that_changes_hands_does_so_in_one_poll(bench: Bench) -> None:
    await bench.worker().write()
    await bench.worker(model=THIEF).write()
    await _own(bench, {"tiny": {MODEL: 100}})
    await bench.poll()
    await _own(bench, {"tiny": {THIEF: 100}})
    await bench.poll()
    assert bench.taking() == []
    assert [one.replica for one in bench.taking(THIEF)] == ["w0"]
    await _own(bench, {})
    await bench.poll()
    assert not bench.registry.fleet.models


async def test_a_broken_entry_gives_its_route_to_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.worker().write()
    await bench.worker("w1", model="local/large", route="large").write()
    await _own(bench, {"tiny": {MODEL: 100}, "large": {ModelId("local/large"): 1}})
    await bench.admin.hset(redis_keys.ROUTES, "tiny", "{broken")
    await bench.poll()
    await bench.poll()
    assert list(bench.registry.fleet.models) == ["local/large"]
    assert [record.getMessage() for record in caplog.records].count("routes.entry_broken") == 1


async def test_owners_stay_while_redis_is_emptied(bench: Bench) -> None:
    one, thief = bench.worker(), bench.worker(model=THIEF)
    await _own(bench, {"tiny": {MODEL: 100}})
    for worker_ in (one, thief):
        await worker_.write()
    await bench.poll()
    await bench.admin.flushall()
    for worker_ in (one, thief):
        await worker_.write()
    await bench.poll()
    assert bench.names() == ["w0"]
    assert bench.taking(THIEF) == []


async def test_two_artifacts_of_one_model_are_never_mixed(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.worker(name).write()
    await bench.worker("c", artifact=byte_artifact("{{ 'new' }}")).write()
    await bench.poll()
    assert bench.names() == ["a", "b"]


async def test_names_that_are_no_text_are_nobodys(bench: Bench) -> None:
    await bench.admin.sadd(redis_keys.MODELS, b"\xff\xfe")
    await bench.worker().write()
    await bench.poll()
    assert bench.names() == ["w0"]
