"""What the three programs do in Redis, all of it at once on one installation: nothing more is needed to see it work.

A worker renews its lease, the operator holds tenants and routes, a gateway follows all of that, and reserves and
settles as requests would. Each connects with its own role and its program's own way to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hanmaru_contracts import keys, redis_keys
from hanmaru_contracts.crd.v1alpha1.tenant import Limit, TenantSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId, ReplicaId, RequestId, TenantId
from hanmaru_contracts.wire.directory import routes_table, tenants_table
from hanmaru_contracts.wire.worker import Capabilities, ModelArtifact, WorkerRecord, pack_artifact
from hanmaru_gateway.admission.quota import Quota
from hanmaru_gateway.admission.tenants import TenantStore
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.request import Identity
from hanmaru_gateway.routing.registry import Registry, StoreState
from hanmaru_gateway.settlement import Settlements
from hanmaru_operator.directory import Directory
from hanmaru_operator.store import connect as connect_operator
from hanmaru_redis import Redis
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_worker.registry import PackedArtifact
from hanmaru_worker.registry import Registry as WorkerRegistry
from hanmaru_worker.registry import connect as connect_worker

from hanmaru_testing.redis_topologies import Installation

REQUESTERS = 4
"""Each asks for one request after the other."""
DEADLINE_S = 1.2
"""Of a request's dealings with Redis."""
SECRET = b"s" * 32
MODEL, REPLICA = ModelId("team/exaone"), ReplicaId("worker-0")
TENANTS = [TenantId(name) for name in ("acme", "bolt", "core", "dale")]
"""Their keys lie in different slots."""
SPEC = TenantSpec(limits=(Limit(name="default", output_tokens_per_minute=10**9, concurrency=1000),))
ARTIFACT = PackedArtifact(*pack_artifact(ModelArtifact(tokenizer=b"{}", chat_template="T")))
RECORD = WorkerRecord(
    model=MODEL,
    replica=REPLICA,
    route="exaone",
    pool="any",
    address="127.0.0.1:1",
    artifact=ARTIFACT.digest,
    capabilities=Capabilities(context_tokens=4096, dtype="float32", page_size=1, sliding_window_tokens=128),
    expires_at_ms=0,
)


@dataclass
class World:
    """The programs' parts, and what became of the requests."""

    tenants: TenantStore
    registry: Registry
    quota: Quota
    settlements: Settlements
    directory: Directory
    worker: WorkerRegistry
    gateway_redis: Redis
    admitted: int = 0
    failures: list[HanmaruError] = field(default_factory=list)
    refused: set[TenantId] = field(default_factory=set)
    """Whose requests failed."""
    last_failed_s: float = 0.0
    """When a request was last refused, by the monotonic clock."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def request(self, tenant: TenantId = TENANTS[0]) -> bool:
        """One request's dealings with Redis; whether it was admitted."""
        me = RequestId(f"req-{next(self._numbers):032x}")
        try:
            held = await self.quota.reserve(
                Identity(tenant, SPEC, "key"), MODEL, me, prompt_tokens=5, output_tokens=100
            )
        except HanmaruError as error:
            self.failures.append(error)
            self.refused.add(tenant)
            self.last_failed_s = time.monotonic()
            return False
        self.admitted += 1
        self.settlements.add(held, prompt_tokens=5, output_tokens=10)
        return True

    async def requests(self, stop: asyncio.Event) -> None:
        """One after the other, of all tenants, until asked to stop: who leaves in the middle keeps a place."""
        for tenant in itertools.cycle(TENANTS):
            if stop.is_set():
                return
            await self.request(tenant)
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Requests run all the time."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(REQUESTERS):
                group.create_task(self.requests(stop))
            try:
                yield
            finally:
                stop.set()

    @property
    def sees_everything(self) -> bool:
        """The gateway's view is fresh, has the worker, and knows what the operator wrote."""
        fleet = self.registry.fleet
        return (
            self.registry.state is StoreState.FRESH
            and MODEL in fleet.models
            and bool(self.registry.workers(fleet.models[MODEL]))
            and fleet.routes == {"exaone": (MODEL,)}
            and len(self.tenants.directory) == len(TENANTS)
        )

    async def until_whole(self, within_s: float) -> float:
        """Wait until the gateway sees everything and admits every tenant's requests; how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            while True:
                failed = len(self.failures)
                if self.sees_everything and all([await self.request(tenant) for tenant in TENANTS]):
                    return time.monotonic() - began
                del self.failures[failed:]
                await asyncio.sleep(0.05)

    async def until_settled(self, within_s: float) -> None:
        """Wait until what ended is written."""
        await self.settlements.flush(within_s)
        assert not self.settlements.pending

    def taking(self) -> list[ReplicaId]:
        """Replicas that take requests."""
        served = self.registry.fleet.models.get(MODEL)
        return [worker.record.replica for worker in self.registry.workers(served)] if served else []

    async def running(self, tenant: TenantId) -> int:
        """Requests that hold a place."""
        held: int = await self.gateway_redis.zcard(redis_keys.running(tenant, "default"))
        return held

    def require_clear_failures(self) -> None:
        """Nothing but `try again` was told to callers."""
        assert {error.code for error in self.failures} <= {ErrorCode.STORE_UNAVAILABLE}, self.failures


@asynccontextmanager
async def world(installation: Installation) -> AsyncIterator[World]:
    """All parts run until the block ends."""
    gateway = open_redis(installation.access("gateway"), "hanmaru-gateway", Patience(0.6, DEADLINE_S))
    quota_redis = open_redis(installation.access("gateway"), "hanmaru-gateway", Patience(0.6, None))
    operator = connect_operator(installation.access("operator"))
    meters = Meters()
    quota = Quota(quota_redis, timeout_s=DEADLINE_S)
    made = World(
        TenantStore(gateway, poll_s=0.1),
        Registry(
            gateway,
            SECRET,
            want_artifacts=lambda _: None,
            has_artifact=lambda _: True,
            meters=meters,
            now=time.monotonic,
            now_ms=lambda: time.time_ns() // 1_000_000,
            interval_s=0.1,
        ),
        quota,
        Settlements(quota, meters, time.monotonic),
        Directory(operator, on_reachability=lambda _: None, now=time.monotonic, poll_s=0.2),
        WorkerRegistry(
            connect_worker(installation.access("worker")), keys.replica_key(SECRET, MODEL, REPLICA), MODEL, ARTIFACT
        ),
        gateway,
    )
    made.directory.want(
        routes=routes_table({"exaone": {MODEL: 100}}), tenants=tenants_table(dict.fromkeys(TENANTS, SPEC))
    )
    loops = [
        asyncio.create_task(loop)
        for loop in (
            made.tenants.run(),
            made.registry.run(),
            quota.run(),
            made.settlements.run(),
            made.directory.run(),
            _renew(made.worker),
        )
    ]
    try:
        yield made
        for loop in loops:
            assert not loop.done(), loop
    finally:
        while running := [loop for loop in loops if not loop.done()]:
            for loop in running:  # before Python 3.12 redis-py can swallow a cancellation
                loop.cancel()
            await asyncio.wait(running, timeout=0.1)
        # Exchanges that nobody waits for any more would open their connections anew after they are closed.
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=3.0)
        await made.worker.close()
        for client in (gateway, quota_redis, operator):
            await client.aclose()


async def _renew(worker: WorkerRegistry) -> None:
    """As a worker's leader does: what failed is tried with the next turn."""
    while True:
        with contextlib.suppress(HanmaruError, TimeoutError):
            async with asyncio.timeout(2.0):
                await worker.renew(RECORD)
        await asyncio.sleep(0.3)
