"""Which Kubernetes Events an object gets: one when a condition turns or changes its reason, one for each sort of step.

Reconciles call `notes` after they have written a status. An unchanged world gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from hanmaru_contracts.crd.schema import Condition

from hanmaru_operator.observe import Entry
from hanmaru_operator.status import bounded, listed
from hanmaru_operator.types import (
    ConditionType,
    CreateReplica,
    EventNote,
    ReplicaStep,
    Why,
)

Recorder = Callable[[Entry, EventNote], None]
"""Tells an event about an object; never waits."""
_GOOD = frozenset({ConditionType.AVAILABLE.value, ConditionType.PROGRESSING.value})
_INFORMING = frozenset({ConditionType.DEFAULTS_OUTDATED.value, ConditionType.EXPERIMENTAL.value})
_FAILURES = frozenset({Why.NODE_LOST, Why.NOT_BOUND, Why.GROUP_BROKEN})


def notes(
    old: Iterable[Mapping[str, Any]], new: Sequence[Condition], steps: Iterable[ReplicaStep] = ()
) -> tuple[EventNote, ...]:
    """Events for what has changed. `old`: the conditions that were in the status, as JSON; `new`: those written now."""
    before = {str(condition.get("type")): condition for condition in old}
    changed = [note for condition in new if (note := _turned(before.get(condition.type), condition)) is not None]
    stated = {condition.type for condition in new if condition.type in _GOOD or condition.status != "False"}
    ended = [
        EventNote("Normal", f"{kind}Resolved", f"no longer so: {condition.get('message', '')}")
        for kind, condition in before.items()
        if kind not in stated and condition.get("status") == "True" and kind not in _GOOD
    ]
    return tuple(
        EventNote(note.type, note.reason, bounded(note.message)) for note in [*changed, *ended, *_taken(steps)]
    )


def _turned(old: Mapping[str, Any] | None, new: Condition) -> EventNote | None:
    """An event for a condition whose status or reason is another; none for what is new and not available yet.

    Of bad news that is not so, `notes` tells when it ended.
    """
    if old is not None and (old.get("status"), old.get("reason")) == (new.status, new.reason):
        return None
    if new.type not in _GOOD and new.status == "False":
        return None
    if new.type == ConditionType.AVAILABLE.value and new.status != "True":
        was_available = old is not None and old.get("status") == "True"
        return EventNote("Warning", new.reason, new.message) if was_available else None
    is_bad = new.status == "False" if new.type in _GOOD else new.type not in _INFORMING
    severity: Literal["Normal", "Warning"] = "Warning" if is_bad else "Normal"
    return EventNote(severity, new.reason, new.message)


def _taken(steps: Iterable[ReplicaStep]) -> list[EventNote]:
    """One event for all steps of a sort, however many replicas they touch."""
    made: dict[str, list[str]] = {}
    undone: dict[tuple[str, Why], list[str]] = {}
    for step in steps:
        if isinstance(step, CreateReplica):
            made.setdefault(step.pool, []).append(step.id)
        else:
            undone.setdefault((type(step).__name__, step.why), []).append(step.id)
    created = [
        EventNote("Normal", "ReplicaCreated", f"new in pool {pool}: {listed(ids)}") for pool, ids in made.items()
    ]
    return created + [
        EventNote("Warning" if why in _FAILURES else "Normal", why.value, f"{_DONE[step]}: {listed(ids)}")
        for (step, why), ids in undone.items()
    ]


_DONE = {"DeleteReplica": "draining and deleting", "RestartGroup": "starting the whole group anew"}
