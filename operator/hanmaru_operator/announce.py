"""Posts Kubernetes Events for people, without flooding anybody and without making anybody wait.

Reconcilers call `record`; `run` posts in the background. What repeats within ten minutes becomes a series of the same
Event, counted at most once a minute; an object that says ever new things may say a few dozen, then two a minute. An
Event that cannot be posted is lost with a log line. Which events there are is decided in `events`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import FIELD_MANAGER

from hanmaru_operator import kinds
from hanmaru_operator.api_errors import ClusterError, NotFound
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.observe import Entry
from hanmaru_operator.types import EventNote, Manifest, ObjectKey

_log = logging.getLogger(__name__)

SERIES_S = 600.0
"""After so long without it, the same thing is news again."""
COUNT_EVERY_S = 60.0
BURST = 25
REFILL_S = 30.0
_REMEMBERED = 10_000
_QUEUED = 1_000
_MAX_NAME_CHARS = 200
_MAX_NOTE_CHARS = 1024
_MAX_REASON_CHARS = 128


@dataclass(slots=True)
class _Said:
    name: str
    count: int
    last_at: float
    counted_at: float


@dataclass(slots=True)
class _Budget:
    left: float
    at: float


@dataclass(frozen=True, slots=True)
class First:
    """Create the Event."""

    name: str


@dataclass(frozen=True, slots=True)
class Again:
    """Count it in the Event that is there."""

    name: str
    count: int


class Ledger:
    """What was said lately; decides what is posted. Told the time, which never goes back."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, EventNote], _Said] = OrderedDict()
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    def decide(self, uid: str, name: str, note: EventNote, now: float) -> First | Again | None:
        """For a note about the object of this uid and name. None: nothing is posted."""
        said = self._said.pop((uid, note), None)
        if said is None or now - said.last_at > SERIES_S:
            if not self._may_speak(uid, now):
                return None
            digest = hashlib.sha256(f"{uid}|{note}|{now}".encode()).hexdigest()[:16]
            said = _Said(f"{name[:_MAX_NAME_CHARS].rstrip('.-')}.{digest}", 1, now, now)
            self._keep(uid, note, said)
            return First(said.name)
        said.count += 1
        said.last_at = now
        self._keep(uid, note, said)
        if now - said.counted_at < COUNT_EVERY_S:
            return None
        said.counted_at = now
        return Again(said.name, said.count)

    def _keep(self, uid: str, note: EventNote, said: _Said) -> None:
        self._said[uid, note] = said
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def _may_speak(self, uid: str, now: float) -> bool:
        budget = self._budgets.pop(uid, None) or _Budget(BURST, now)
        budget.left = min(float(BURST), budget.left + (now - budget.at) / REFILL_S)
        budget.at = now
        self._budgets[uid] = budget
        if len(self._budgets) > _REMEMBERED:
            self._budgets.popitem(last=False)
        if budget.left < 1:
            return False
        budget.left -= 1
        return True


class Announcer:
    """One a process, of the leader alone."""

    def __init__(self, cluster: Cluster, *, instance: str, clock: Callable[[], float]) -> None:
        """`instance` names this process. `clock` is monotonic."""
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self._ledger = Ledger()
        self._queue: asyncio.Queue[tuple[Entry, EventNote]] = asyncio.Queue(_QUEUED)

    def record(self, about: Entry, note: EventNote) -> None:
        """Post an Event about an object soon."""
        try:
            self._queue.put_nowait((about, note))
        except asyncio.QueueFull:
            log_event(_log, logging.WARNING, "announce.lost", reason=note.reason, name=about.key.name)

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            about, note = await self._queue.get()
            decided = self._ledger.decide(about.uid, about.key.name, note, self._clock())
            try:
                match decided:
                    case First(name):
                        await self._cluster.create(self._event(name, about, note))
                    case Again(name, count):
                        await self._count(name, about, note, count)
            except ClusterError as error:
                log_event(_log, logging.WARNING, "announce.lost", reason=note.reason, message=error.message)

    async def _count(self, name: str, about: Entry, note: EventNote, count: int) -> None:
        series = {"count": count, "lastObservedTime": _micro_time()}
        try:
            await self._cluster.patch(ObjectKey(kinds.EVENTS.kind, _place(about), name), {"series": series})
        except NotFound:  # events live for an hour
            await self._cluster.create(self._event(name, about, note))

    def _event(self, name: str, about: Entry, note: EventNote) -> Manifest:
        api = kinds.api_of(about.key.kind)
        return {
            "apiVersion": kinds.EVENTS.api_version,
            "kind": kinds.EVENTS.kind,
            "metadata": {"name": name, "namespace": _place(about)},
            "eventTime": _micro_time(),
            "reportingController": f"serving.hanmaru.dev/{FIELD_MANAGER}",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": note.reason[:_MAX_REASON_CHARS],
            "type": note.type,
            "note": note.message[:_MAX_NOTE_CHARS],
            "regarding": {
                "apiVersion": api.api_version,
                "kind": api.kind,
                "namespace": about.key.namespace or None,
                "name": about.key.name,
                "uid": about.uid,
            },
        }


def _place(about: Entry) -> str:
    """Events of the cluster's objects live in `default`, where kubectl looks for them."""
    return about.key.namespace or "default"


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
