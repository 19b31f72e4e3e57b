"""Who lives: reads the workers' leases from Redis and believes only records their own replica signed.

`run` polls; `flow` asks for a model, takes a `Seat` on a worker for each exchange, and says when a worker broke one.
A lease that is gone makes its worker take nothing at once; that it has been gone for a whole lease more ends the
exchanges that still wait on it. While Redis is away the last view holds as long as leases could, and no exchange ends
for it. Where an operator has said whose a route is, a worker of any other model takes nothing under it.
Leaves out: which model of a route (`routes`) and which worker is best (`policies`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from hanmaru_contracts import redis_keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.directory import Routes, read_routes
from hanmaru_contracts.wire.worker import LEASE_MS, WorkerRecord, unseal
from hanmaru_redis import UNREACHABLE, Redis
from hanmaru_redis.explaining import explain

from hanmaru_gateway.meters import Meters
from hanmaru_gateway.routing.snapshot import Fleet, ServedModel, WorkerSnapshot

log = logging.getLogger(__name__)

LEASE_S = LEASE_MS / 1000
_ROUNDS = 3
"""Reads in one poll: a new model's workers, and their leases, become known one read after the other."""

Place = tuple[ModelId, ReplicaId]


class StoreState(StrEnum):
    """How fresh the view is."""

    UNKNOWN = "unknown"
    """Nothing was ever read."""
    FRESH = "fresh"
    STALE = "stale"
    """Redis did not answer the last poll, or has not been asked for longer than leases live."""


class Seat:
    """One exchange's place on a worker, from dispatch to its end; counts as load until released."""

    __slots__ = ("_deadline", "_replica", "is_lost")

    def __init__(self, replica: _Replica) -> None:
        self._replica = replica
        self._deadline: asyncio.Timeout | None = None
        self.is_lost = False
        """The worker's lease has been gone for so long that no answer will come."""
        replica.seats.add(self)

    def waits(self, deadline: asyncio.Timeout) -> None:
        """The exchange now waits for the worker; `deadline` fires early when the worker is lost."""
        self._deadline = deadline
        if self.is_lost:
            self.lose()

    def waits_no_more(self) -> None:
        """The worker answered."""
        self._deadline = None

    def lose(self) -> None:
        """End the exchange's waiting, now or when it next waits."""
        self.is_lost = True
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """The exchange is over. Idempotent."""
        self._deadline = None
        self._replica.seats.discard(self)


@dataclass(slots=True, eq=False)
class _Replica:
    """What this gateway remembers of one replica."""

    sealed: bytes = b""
    record: WorkerRecord | None = None
    """None while it has no lease, or one that is not believed."""
    seen_s: float = 0.0
    """When Redis last showed its lease."""
    seats: set[Seat] = field(default_factory=set)
    seats_at_report: int = 0
    suspected: bytes = b""
    """The sealed record under which it broke an exchange: it takes nothing until it renews."""
    gone_since_s: float | None = None


class Registry:
    """The live workers. One a process; all methods belong to its event loop."""

    def __init__(
        self,
        redis: Redis,
        platform_secret: bytes,
        *,
        want_artifacts: Callable[[dict[str, ModelId]], None],
        has_artifact: Callable[[str], bool],
        meters: Meters,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        interval_s: float,
    ) -> None:
        self._redis = redis
        self._secret = platform_secret
        self._want_artifacts = want_artifacts
        self._has_artifact = has_artifact
        self._meters = meters
        self._now = now
        self._now_ms = now_ms
        self._interval_s = interval_s
        self._replicas: dict[Place, _Replica] = {}
        self._models: dict[ModelId, list[ReplicaId]] = {}
        self._routes: dict[str, set[ModelId]] = {}
        """Told by workers."""
        self._owned: Routes | None = None
        """Told by the operator; None until it ever was."""
        self._owned_version: bytes | None = None
        self._read_s: float | None = None
        self._is_away = False
        self._fleet = Fleet()

    # --- What flow asks ---------------------------------------------------------------------------------------------

    @property
    def fleet(self) -> Fleet:
        """Served models as of the last poll."""
        return self._fleet

    @property
    def state(self) -> StoreState:
        """How fresh the view is."""
        if self._read_s is None:
            return StoreState.UNKNOWN
        if self._is_away or self._now() - self._read_s >= LEASE_S:
            return StoreState.STALE
        return StoreState.FRESH

    @property
    def inflight_requests(self) -> int:
        """Seats taken on all workers."""
        return sum(len(replica.seats) for replica in self._replicas.values())

    def workers(self, model: ServedModel) -> list[WorkerSnapshot]:
        """The model's workers that take requests now, with their load."""
        now = self._now()
        found = []
        for name in model.workers:
            replica = self._replicas.get((model.id, name))
            if replica is None or replica.record is None:
                continue
            if now - replica.seen_s >= LEASE_S or replica.suspected == replica.sealed:
                continue
            found.append(WorkerSnapshot(replica.record, _load_requests(replica)))
        return found

    def take(self, worker: WorkerSnapshot) -> Seat:
        """A seat on the worker; the caller releases it."""
        return Seat(self._replicas[(worker.record.model, worker.record.replica)])

    def suspect(self, worker: WorkerSnapshot) -> None:
        """The worker broke an exchange: it takes nothing until it has renewed its registration."""
        replica = self._replicas.get((worker.record.model, worker.record.replica))
        if replica is not None and replica.record is not None:
            replica.suspected = replica.sealed

    # --- Polling ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Poll for ever; Redis being away is waited out."""
        lost_s: float | None = None
        while True:
            try:
                await self.poll()
            except HanmaruError as error:
                self._meters.store_up(False)
                if lost_s is None:
                    lost_s = self._now()
                    log_event(log, logging.WARNING, "store.lost", problem=error.message)
            else:
                self._meters.store_up(True)
                if lost_s is not None:
                    log_event(log, logging.INFO, "store.back", away_s=round(self._now() - lost_s, 1))
                    lost_s = None
            await asyncio.sleep(self._interval_s)

    async def poll(self) -> None:
        """Read every lease once. Raises HanmaruError (STORE_UNAVAILABLE) and keeps the view when Redis is away."""
        try:
            leases = await self._read()
        except UNREACHABLE as error:
            self._is_away = True
            raise HanmaruError(ErrorCode.STORE_UNAVAILABLE, explain(error)) from error
        now = self._now()
        # After an outage nobody's absence has been watched: leases get their time to come back, even to an empty Redis.
        was_away = self._read_s is None or now - self._read_s >= LEASE_S
        self._read_s = now
        self._is_away = False
        for place, sealed in leases.items():
            self._see(place, sealed, now)
        for place in [place for place in self._replicas if leases.get(place) is None]:
            self._miss(place, now, was_away)
        self._fleet = self._view()
        self._want_artifacts({r.record.artifact: m for (m, _), r in self._replicas.items() if r.record is not None})

    async def _read(self) -> dict[Place, bytes | None]:
        leases: dict[Place, bytes | None] = {}
        for _ in range(_ROUNDS):
            places = [(model, replica) for model, replicas in self._models.items() for replica in replicas]
            models = list(self._models)
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.get(redis_keys.ROUTES_VERSION)
                pipe.smembers(redis_keys.MODELS)
                for model in models:
                    pipe.zrange(redis_keys.workers(model), 0, -1)
                for model, replica in places:
                    pipe.get(redis_keys.worker_lease(model, replica))
                version, *answers = await pipe.execute()
            # None: never written, or an emptied Redis; whoever owns the table restores it, and it holds meanwhile.
            if version is not None and version != self._owned_version:
                await self._read_routes()
            known = dict(zip(models, answers[1 : 1 + len(models)], strict=True))
            leases = dict(zip(places, answers[1 + len(models) :], strict=True))
            found = {ModelId(name): _texts(known.get(ModelId(name), ())) for name in _texts(answers[0])}
            grew = any(
                model not in self._models or set(replicas) - set(self._models[model])
                for model, replicas in found.items()
            )
            self._models = {model: [ReplicaId(r) for r in replicas] for model, replicas in found.items()}
            if not grew:
                break
        return leases

    async def _read_routes(self) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(redis_keys.ROUTES_VERSION)
            pipe.hgetall(redis_keys.ROUTES)
            version, entries = await pipe.execute()
        if version is None:
            return
        self._owned, broken = read_routes(entries)
        self._owned_version = version
        for route in broken:
            log_event(log, logging.ERROR, "routes.entry_broken", route=route)
        log_event(log, logging.INFO, "routes.loaded", routes=len(self._owned))

    def _see(self, place: Place, sealed: bytes | None, now: float) -> None:
        if sealed is None:
            return
        replica = self._replicas.setdefault(place, _Replica())
        if sealed == replica.sealed and replica.record is not None and replica.record.expires_at_ms > self._now_ms():
            replica.seen_s = now
            replica.gone_since_s = None
            return
        record = unseal(sealed, self._secret, *place, self._now_ms())
        if record is None:
            if sealed != replica.sealed:
                self._meters.registration_ignored()
                log_event(log, logging.WARNING, "registration.ignored", model=place[0], replica=place[1])
            replica.sealed, replica.record = sealed, None
            return
        if replica.record is None:
            log_event(log, logging.INFO, "worker.found", model=place[0], replica=place[1], address=record.address)
        replica.sealed, replica.record, replica.seen_s, replica.gone_since_s = sealed, record, now, None
        replica.seats_at_report = len(replica.seats)
        self._routes.setdefault(record.route, set()).add(record.model)

    def _miss(self, place: Place, now: float, was_away: bool) -> None:
        replica = self._replicas[place]
        if replica.record is not None:
            log_event(log, logging.INFO, "worker.gone", model=place[0], replica=place[1])
            replica.record = None
        if replica.gone_since_s is None or was_away:
            replica.gone_since_s = now
        elif now - replica.gone_since_s >= LEASE_S:
            for seat in replica.seats:
                seat.lose()
        if not replica.seats:
            del self._replicas[place]

    def _view(self) -> Fleet:
        records: dict[ModelId, list[WorkerRecord]] = {}
        for (model, _), replica in self._replicas.items():
            if replica.record is not None and not replica.record.draining and self._may_serve(replica.record):
                records.setdefault(model, []).append(replica.record)
        for model in self._fleet.models.keys() - records.keys():
            self._meters.workers(model, 0)
        models = {}
        for model, live in records.items():
            served = self._served(model, live)
            self._meters.workers(model, len(served.workers) if served else 0)
            if served:
                models[model] = served
        routes = self._routes if self._owned is None else self._owned
        return Fleet(models, {route: tuple(sorted(ids)) for route, ids in routes.items()}, self._owned)

    def _may_serve(self, record: WorkerRecord) -> bool:
        """Whether the route under which the worker registered is its model's."""
        return self._owned is None or record.model in self._owned.get(record.route, {})

    def _served(self, model: ModelId, live: Iterable[WorkerRecord]) -> ServedModel | None:
        """The model by its most common artifact: during a rollout two may differ, and token ids belong to one."""
        ready = [record for record in live if self._has_artifact(record.artifact)]
        if not ready:
            return None
        artifact, _ = min(Counter(r.artifact for r in ready).items(), key=lambda item: (-item[1], item[0]))
        chosen = sorted((r for r in ready if r.artifact == artifact), key=lambda r: r.replica)
        return ServedModel(
            id=model,
            route=chosen[0].route,
            artifact=artifact,
            context_tokens=max(r.capabilities.context_tokens for r in chosen),
            workers=tuple(r.replica for r in chosen),
        )


def _load_requests(replica: _Replica) -> int:
    """What the worker said it had, and what this gateway added since; never less than this gateway has there."""
    assert replica.record is not None
    load = replica.record.load
    since = len(replica.seats) - replica.seats_at_report
    return max(len(replica.seats), load.running_requests + load.queued_requests + since)


def _texts(names: Iterable[bytes]) -> list[str]:
    """Names as text; what is no UTF-8 was written by nobody of ours."""
    texts = []
    for name in names:
        try:
            texts.append(name.decode())
        except UnicodeDecodeError:
            continue
    return texts
