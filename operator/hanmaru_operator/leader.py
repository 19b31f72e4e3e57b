"""Who may write: one of several replicas, by a `coordination.k8s.io` Lease in the operator's namespace.

`main` holds an `Elector`: `acquire` waits until we lead, `keep` renews until we do not, `time_left_s` is asked before
every write. The decision (`next_move`) is pure. Nobody's clock is compared with anybody else's: another holder is
judged by how long *we* have seen its record unchanged, ourselves by how long ago we began the last renewal that went
well, both on a clock that only goes forward and counts the time a machine sleeps. A holder stops writing
`renew_deadline_s` after that, before anybody else may have waited `lease_s`. Times in the record are for people.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeGuard

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_operator import kinds
from hanmaru_operator.api_errors import ClusterError, Conflict, NotFound
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.types import Manifest, ObjectKey

_log = logging.getLogger(__name__)

_RELEASED_LEASE_S = 1
"""What a holder that leaves writes: the next one need not wait."""


@dataclass(frozen=True, slots=True)
class Times:
    """How leading is kept and lost. Each must be clearly longer than the next."""

    lease_s: float = 15.0
    """How long others wait for a holder that shows no life."""
    renew_deadline_s: float = 10.0
    """How long a holder that cannot renew goes on."""
    retry_s: float = 2.0
    """Between renewals, and between looks at another's record."""


_MARKS = ("labels", "annotations")
"""Of the Lease: others' words, which a renewal keeps."""


class LeadershipLost(HanmaruError):  # noqa: N818 - as in `api_errors`
    """The lease was not renewed in time, or somebody else has it: this process must end at once."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INTERNAL, message)


@dataclass(frozen=True, slots=True)
class Record:
    """What the Lease says."""

    holder: str
    """Empty: it was given back."""
    lease_s: float
    resource_version: int
    transitions: int = 0
    acquired_at: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, and since when we have seen it so (our own clock)."""

    record: Record | None
    """None: there is no Lease."""
    since: float


class Move(StrEnum):
    """What a candidate does next."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def next_move(seen: Seen, me: str, now: float, lease_s: float) -> Move:
    """What `me` may do about the record it sees. A holder that says a longer lease than ours is given that long."""
    record = seen.record
    if record is None:
        return Move.CREATE
    if record.holder == me:
        return Move.RENEW
    if not record.holder:
        return Move.TAKE
    return Move.TAKE if now - seen.since >= max(lease_s, record.lease_s) else Move.WAIT


def watch(last: Seen | None, record: Record | None, now: float) -> Seen:
    """What is seen now, after `last`: a record that has not changed keeps the time since when it is so."""
    if last is not None and last.record == record:
        return last
    return Seen(record, now)


def steady_clock() -> float:
    """Seconds that never go back and pass while the machine sleeps, when others may take the lease."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class Elector:
    """One candidate for one Lease."""

    def __init__(
        self, cluster: Cluster, key: ObjectKey, me: str, *, times: Times, clock: Callable[[], float] = steady_clock
    ) -> None:
        """`cluster` must allow writes while we do not lead: this is the only one who may. `me` names this run alone."""
        self._cluster = cluster
        self._key = key
        self._me = me
        self._times = times
        self._clock = clock
        self._seen: Seen | None = None
        self._renewed_at: float | None = None
        self._marks: dict[str, Any] = {}

    def time_left_s(self) -> float:
        """For how long we surely lead; 0 or less: we do not."""
        if self._renewed_at is None:
            return 0.0
        return self._renewed_at + self._times.renew_deadline_s - self._clock()

    @property
    def is_holder(self) -> bool:
        """Whether we lead now."""
        return self.time_left_s() > 0

    async def acquire(self) -> None:
        """Wait until we lead. An API server that does not answer is waited for as well."""
        said = None
        while not await self._attempt():
            holder = self._seen.record.holder if self._seen and self._seen.record else None
            if holder != said:
                log_event(_log, logging.INFO, "leader.waiting", holder=holder)
                said = holder
            await asyncio.sleep(self._times.retry_s)
        log_event(_log, logging.INFO, "leader.acquired", identity=self._me)

    async def keep(self) -> None:
        """Renew for as long as it works, and then raise LeadershipLost."""
        try:
            await self._renew()
        except LeadershipLost as error:
            self._renewed_at = None
            log_event(_log, logging.ERROR, "leader.lost", message=error.message)
            raise

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(min(self._times.retry_s, max(0.0, self.time_left_s())))
            left_s = self.time_left_s()
            if left_s <= 0:
                raise LeadershipLost(f"the lease was not renewed for {self._times.renew_deadline_s:g} s")
            try:
                async with asyncio.timeout(left_s):
                    await self._attempt()
            except TimeoutError:
                continue
            if self._seen and self._seen.record and self._seen.record.holder != self._me:
                raise LeadershipLost(f"{self._seen.record.holder or 'nobody'} holds the lease now")

    async def release(self) -> None:
        """Give the lease back, so that the next one need not wait for it to run out; best effort."""
        record = self._seen.record if self._seen else None
        led, self._renewed_at = self.is_holder, None
        if not led or not self._is_ours(record):
            return
        try:
            try:
                await self._give_back(record)
            except Conflict:
                # A renewal that was cancelled on its way may have been written all the same.
                record = await self._read()
                if not self._is_ours(record):
                    return
                await self._give_back(record)
            log_event(_log, logging.INFO, "leader.released", identity=self._me)
        except ClusterError as error:
            log_event(_log, logging.WARNING, "leader.not_released", message=error.message)

    def _is_ours(self, record: Record | None) -> TypeGuard[Record]:
        return record is not None and record.holder == self._me

    async def _give_back(self, record: Record) -> None:
        await self._write(Record("", _RELEASED_LEASE_S, record.resource_version, record.transitions))

    async def _attempt(self) -> bool:
        """Look, and take or renew where that is right; whether we hold it now. Trouble is logged and means no."""
        try:
            begun_at = self._clock()
            self._seen = watch(self._seen, await self._read(), begun_at)
            move = next_move(self._seen, self._me, self._clock(), self._times.lease_s)
            if move is Move.WAIT:
                return False
            written = await self._write(_next_record(self._seen.record, move, self._me, self._times.lease_s))
        except Conflict:
            return False  # somebody was faster; the next look tells who
        except ClusterError as error:
            log_event(_log, logging.WARNING, "leader.lease_unreachable", message=error.message)
            return False
        self._seen = watch(self._seen, written, self._clock())
        self._renewed_at = begun_at
        return True

    async def _read(self) -> Record | None:
        try:
            lease = await self._cluster.get(self._key)
        except NotFound:
            self._marks = {}
            return None
        # Helm deletes what carries its marks alone, and a write replaces the whole object.
        self._marks = {part: lease["metadata"][part] for part in _MARKS if lease["metadata"].get(part)}
        return _record(lease)

    async def _write(self, record: Record) -> Record:
        manifest = _manifest(self._key, record)
        manifest["metadata"] |= self._marks
        if record.resource_version:
            return _record(await self._cluster.update(manifest))
        return _record(await self._cluster.create(manifest))


def _next_record(old: Record | None, move: Move, me: str, lease_s: float) -> Record:
    now = _micro_time()
    if old is None:
        return Record(me, lease_s, 0, 0, now)
    if move is Move.RENEW:
        return Record(me, lease_s, old.resource_version, old.transitions, old.acquired_at or now)
    return Record(me, lease_s, old.resource_version, old.transitions + 1, now)


def _record(lease: Manifest) -> Record:
    spec: dict[str, Any] = lease.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        lease_s=spec.get("leaseDurationSeconds") or 0,
        resource_version=int(lease["metadata"]["resourceVersion"]),
        transitions=spec.get("leaseTransitions") or 0,
        acquired_at=spec.get("acquireTime") or "",
    )


def _manifest(key: ObjectKey, record: Record) -> Manifest:
    metadata: dict[str, Any] = {"name": key.name, "namespace": key.namespace}
    if record.resource_version:
        metadata["resourceVersion"] = str(record.resource_version)
    spec: dict[str, Any] = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": max(1, round(record.lease_s)),
        "leaseTransitions": record.transitions,
        "renewTime": _micro_time(),
    }
    if record.acquired_at:
        spec["acquireTime"] = record.acquired_at
    api = kinds.LEASES
    return {"apiVersion": api.api_version, "kind": api.kind, "metadata": metadata, "spec": spec}


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
