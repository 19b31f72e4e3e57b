"""A rollout that moves is never late; one that does not is, once, and stays so."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_operator.plan.replicas import plan_replicas
from hanmaru_operator.progress import progress, progress_deadline
from hanmaru_operator.status import deployment_status, merge_conditions
from hanmaru_operator.types import DeleteReplica, DeploymentFacts, ReplicaId, ReplicaPlan, RestartGroup, Why
from hanmaru_testing.operator_facts import NOW, bound_pod, deployment, pod, replica
from hanmaru_testing.small_world import Pool, World

LIMIT_S, OLD = 3600, NOW - 1e6
NOTHING = ReplicaPlan(())
ENDING = bound_pod("r-0", is_terminating=True, gate_lifted_at=OLD, ends_by=NOW + 60)


def stuck(**more: Any) -> DeploymentFacts:
    """One replica that was made long ago and is not ready."""
    pods = (bound_pod("r-0", is_ready=False, created_at=OLD, gate_lifted_at=OLD),)
    return deployment(replica("r", **{"pods": pods, "created_at": OLD, "lease": None, **more}))


def deleting(why: Why) -> ReplicaPlan:
    return ReplicaPlan((DeleteReplica(ReplicaId("x"), why),))


@pytest.mark.parametrize(
    ("facts", "plan", "last"),
    [
        pytest.param(stuck(), NOTHING, OLD, id="nothing"),
        pytest.param(stuck(created_at=NOW - 50), NOTHING, NOW - 50, id="a replica was made"),
        pytest.param(
            stuck(pods=(bound_pod("r-0", is_ready=False, gate_lifted_at=NOW - 40),)), NOTHING, NOW - 40, id="placed"
        ),
        pytest.param(
            stuck(pods=(bound_pod("r-0", ready_at=NOW - 30), pod("r-1")), size=2), NOTHING, NOW - 30, id="ready pod"
        ),
        pytest.param(
            stuck(pods=(bound_pod("r-0", node=None, gate_lifted_at=NOW - 40, is_ready=False),)),
            NOTHING,
            OLD,
            id="lifted in vain",
        ),
        pytest.param(stuck(), deleting(Why.REPLACED), NOW, id="a step is taken now"),
        pytest.param(
            stuck(), ReplicaPlan((RestartGroup(ReplicaId("r"), Why.NOT_BOUND),)), OLD, id="a restart is no progress"
        ),
        pytest.param(
            deployment(replica("r", is_terminating=True, created_at=OLD, pods=(ENDING,)), want=1),
            NOTHING,
            NOW,
            id="one drains",
        ),
        pytest.param(stuck(created_at=NOW + 1e6), NOTHING, NOW, id="a clock that was ahead"),
    ],
)
def test_the_deadline_runs_from_the_last_movement(facts: DeploymentFacts, plan: ReplicaPlan, last: float) -> None:
    assert progress_deadline(facts, plan, []) == last + LIMIT_S
    assert progress(facts, plan, []).is_true is (last + LIMIT_S > NOW)


@pytest.mark.parametrize(
    ("kind", "status", "counts"),
    [
        ("Available", "False", True),
        ("Available", "True", True),
        ("Unschedulable", "True", True),
        ("Progressing", "True", True),
        ("Progressing", "False", False),
        ("DefaultsOutdated", "True", False),
    ],
)
def test_conditions_that_turned_tell_of_movement_too(kind: str, status: str, counts: bool) -> None:
    old = [{"type": kind, "status": status, "lastTransitionTime": "2027-01-15T07:59:50Z"}]
    assert progress_deadline(stuck(), NOTHING, old) == (NOW - 10 if counts else OLD) + LIMIT_S


def test_what_is_complete_paused_or_may_not_run_has_no_deadline() -> None:
    assert progress_deadline(deployment(replica("r")), NOTHING, []) is None
    assert progress_deadline(deployment(replica("r"), want=2, may_run=False), NOTHING, []) is None
    paused = deployment(replica("r", revision="0"), spec={"rollout": {"paused": True}})
    assert progress_deadline(paused, NOTHING, []) is None


def test_a_rollout_of_a_revision_that_never_starts_becomes_late_once() -> None:
    world = World({"a": Pool(nodes=3)}, replicas=2)
    world.settle()
    world.bad_revisions.add("2")
    world.pools["a"].revision = "2"
    old: list[dict[str, Any]] = []
    seen = []
    for _ in range(200):
        facts = world.facts()
        plan = plan_replicas(facts, lambda: ReplicaId("unused"))
        report = deployment_status(facts, plan, old_conditions=old)
        merged = merge_conditions(old, report.statements, generation=1, now=facts.now)
        old = [condition.model_dump(by_alias=True) for condition in merged]
        seen.append(next(each.reason for each in merged if each.type == "Progressing"))
        world.round(40.0)
    late = seen.index("DeadlineExceeded")
    assert set(seen[1:late]) == {"ReplacingReplicas"}
    assert set(seen[late:]) == {"DeadlineExceeded"}
    assert abs(late * 40 - LIMIT_S) <= 120
