"""Events tell of what turned, once, and never of what stays."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.schema import Condition
from hanmaru_contracts.names import ReplicaId
from hanmaru_operator.events import notes
from hanmaru_operator.types import CreateReplica, DeleteReplica, PoolName, RestartGroup, Revision, Why


def condition(kind: str, status: str = "True", reason: str = "Some", message: str = "words") -> Condition:
    at = "2027-01-15T08:00:00Z"
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=at)


def raw(*conditions: Condition) -> list[dict[str, Any]]:
    return [each.model_dump(by_alias=True) for each in conditions]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param([], [condition("Available", "False")], [], id="not available yet"),
        pytest.param([], [condition("Available")], [("Normal", "Some")], id="available"),
        pytest.param(
            [condition("Available")],
            [condition("Available", "False", "Gone")],
            [("Warning", "Gone")],
            id="no longer available",
        ),
        pytest.param(
            [condition("Available", message="1 of 2")],
            [condition("Available", message="2 of 2")],
            [],
            id="only words differ",
        ),
        pytest.param([], [condition("Unschedulable")], [("Warning", "Some")], id="bad news"),
        pytest.param([condition("Unschedulable")], [], [("Normal", "UnschedulableResolved")], id="bad news ends"),
        pytest.param([], [condition("NotAllowed", "False", "Allowed")], [], id="no bad news"),
        pytest.param(
            [condition("NotAllowed")],
            [condition("NotAllowed", "False", "Allowed")],
            [("Normal", "NotAllowedResolved")],
            id="bad news ends and says so",
        ),
        pytest.param(
            [condition("Degraded", reason="A")],
            [condition("Degraded", reason="B")],
            [("Warning", "B")],
            id="another reason",
        ),
        pytest.param(
            [], [condition("Progressing", "False", "DeadlineExceeded")], [("Warning", "DeadlineExceeded")], id="late"
        ),
        pytest.param([], [condition("Progressing", "Unknown", "Paused")], [("Normal", "Paused")], id="paused"),
        pytest.param([], [condition("DefaultsOutdated")], [("Normal", "Some")], id="for information"),
        pytest.param([condition("Degraded")], [condition("Degraded")], [], id="nothing turned"),
    ],
)
def test_an_event_is_made_when_a_condition_turns(
    old: list[Condition], new: list[Condition], expected: list[tuple[str, str]]
) -> None:
    assert [(note.type, note.reason) for note in notes(raw(*old), new)] == expected


def test_steps_of_one_sort_are_one_event() -> None:
    steps = [CreateReplica(ReplicaId(f"r{number}"), PoolName("a"), Revision("1")) for number in range(8)]
    more = [DeleteReplica(ReplicaId("x"), Why.SCALED_DOWN), RestartGroup(ReplicaId("y"), Why.GROUP_BROKEN)]
    assert [(note.type, note.reason, note.message) for note in notes([], [], [*steps, *more])] == [
        ("Normal", "ReplicaCreated", "new in pool a: r0, r1, r2, r3, r4 and 3 more"),
        ("Normal", "ScaledDown", "draining and deleting: x"),
        ("Warning", "GroupBroken", "starting the whole group anew: y"),
    ]


def test_a_message_is_bounded() -> None:
    (note,) = notes([], [condition("Degraded", message="x" * 5000)])
    assert len(note.message) == 1024
