from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentStatus
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT, ReplicaId
from hanmaru_operator.rollout_view import Outcome, view_rollout
from hanmaru_operator.status import deployment_status, merge_conditions
from hanmaru_operator.types import DeploymentFacts, ProgressReason, ReplicaPlan, Revision, UnschedulableReason
from hanmaru_testing.operator_facts import deployment as seen
from hanmaru_testing.operator_facts import option, replica
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

GENERATION = 3
PROGRESSING = ("Progressing", "True", "ReplacingReplicas", "1 of 2 replicas are ready; 1 of 2 run the current revision")
COMPLETE = ("Progressing", "True", "RolloutComplete", "2 replicas run the current revision")
PAUSED = ("Progressing", "Unknown", "Paused", "rollout.paused is true; 1 of 2 replicas run an old revision")
AVAILABLE = ("Available", "True", "AllReplicasReady", "2 of 2 replicas are ready")
UNAVAILABLE = ("Available", "False", "MinimumUnavailable", "1 of 2 replicas are ready")

Says = tuple[str, str, str, str]


def condition(says: Says, generation: int = GENERATION) -> dict[str, Any]:
    kind, status, reason, message = says
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": "2026-11-22T00:00:00Z",
    }


def deployment(
    *conditions: Says, spec: dict[str, Any] | None = None, restarted_at: str = "", **status: Any
) -> dict[str, Any]:
    shown = {
        "observedGeneration": GENERATION,
        "revision": "aaaaaaaaaa",
        "replicas": 2,
        "readyReplicas": 2,
        "conditions": [condition(each) for each in conditions],
    } | status
    annotations = {ANNOTATION_RESTARTED_AT: restarted_at} if restarted_at else {}
    metadata = {"name": "m", "namespace": "ns", "uid": "u", "generation": GENERATION, "annotations": annotations}
    return {"metadata": metadata, "spec": {"replicas": 2} | (spec or {}), "status": shown}


def revisions(**replicas: int) -> list[dict[str, Any]]:
    return [{"hash": name, "replicas": count, "ready": count} for name, count in replicas.items()]


@pytest.mark.parametrize(
    ("manifest", "outcome", "said"),
    [
        (deployment(COMPLETE, AVAILABLE), Outcome.COMPLETE, "rolled out, 2 of 2 replicas are ready"),
        (deployment(PROGRESSING, UNAVAILABLE), Outcome.PROGRESSING, PROGRESSING[3]),
        (deployment(COMPLETE, UNAVAILABLE), Outcome.PROGRESSING, "1 of 2 replicas are ready"),
        (deployment(PAUSED, AVAILABLE, revisions=revisions(aaaaaaaaaa=1, b=1)), Outcome.PAUSED, "old revision"),
        (deployment(PAUSED, AVAILABLE, revisions=revisions(aaaaaaaaaa=2)), Outcome.COMPLETE, "rolled out and paused"),
        (
            deployment(("Progressing", "False", "DeadlineExceeded", "no progress within 60 s"), UNAVAILABLE),
            Outcome.FAILED,
            "DeadlineExceeded: no progress within 60 s",
        ),
        (
            deployment(("Progressing", "False", "Refused", "the deployment may not run"), UNAVAILABLE),
            Outcome.FAILED,
            "the deployment may not run",
        ),
        (
            deployment(
                ("Progressing", "True", "Stopped", "no replica is left"),
                ("Available", "False", "Stopped", "lifecycle.stopped is true: no replica runs"),
                spec={"lifecycle": {"stopped": True}},
                replicas=0,
                readyReplicas=0,
            ),
            Outcome.COMPLETE,
            "stopped, and no replica is left",
        ),
        (
            deployment(
                ("Progressing", "True", "Stopped", "1 replicas are left"),
                spec={"lifecycle": {"stopped": True}},
                replicas=1,
            ),
            Outcome.PROGRESSING,
            "1 replicas are left",
        ),
        (
            deployment(COMPLETE, AVAILABLE, spec={"replicas": 0}, replicas=0, readyReplicas=0),
            Outcome.COMPLETE,
            "0 of 0",
        ),
        (deployment(), Outcome.PROGRESSING, "2 of 2 replicas are ready"),
    ],
)
def test_an_observed_rollout_stands_as_its_conditions_say(
    manifest: dict[str, Any], outcome: Outcome, said: str
) -> None:
    view = view_rollout(manifest)
    assert view.outcome is outcome
    assert said in view.line


@pytest.mark.parametrize(
    ("refusal", "plans", "is_failed"),
    [
        (("LicenceNotAccepted", "True", "NotAccepted", "name it in licence.accepted"), [], True),
        (("LicenceNotAccepted", "False", "Accepted", ""), [], False),
        (("NameConflict", "True", "RouteTaken", "route belongs to namespace x"), [], True),
        (("NotAllowed", "True", "PoolNotAllowed", "pool a does not take it"), [("a", False)], True),
        (("NotAllowed", "True", "PoolNotAllowed", "pool a does not take it"), [("a", False), ("b", True)], False),
        (("Unschedulable", "True", "NoPoolFits", "pool a: too small"), [("a", False)], True),
        (("Unschedulable", "Unknown", "NoPoolFits", "the model is being read"), [("a", False)], False),
        (("Unschedulable", "True", "DevicesMissing", "pool a: 8 missing"), [("a", True)], False),
        (("Unschedulable", "True", "MaxReplicas", "the pools allow 1"), [("a", True)], False),
    ],
)
def test_only_a_refusal_that_lets_nothing_run_is_a_failure(
    refusal: Says, plans: list[tuple[str, bool]], is_failed: bool
) -> None:
    plan = [{"pool": pool, "fits": fits} for pool, fits in plans]
    view = view_rollout(deployment(refusal, PROGRESSING, UNAVAILABLE, plan=plan))
    assert (view.outcome is Outcome.FAILED) is is_failed
    if is_failed:
        assert view.message == f"{refusal[0]}: {refusal[3]}"
        assert view.reason == refusal[0]


def test_a_refusal_does_not_matter_to_what_is_stopped() -> None:
    manifest = deployment(
        ("LicenceNotAccepted", "True", "NotAccepted", "x"),
        ("Progressing", "True", "Stopped", ""),
        spec={"lifecycle": {"stopped": True}},
        replicas=0,
    )
    assert view_rollout(manifest).outcome is Outcome.COMPLETE


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (deployment(COMPLETE, AVAILABLE, observedGeneration=2), "generation 2 of 3"),
        ({**deployment(), "status": {}}, "generation 0 of 3"),
        (deployment(COMPLETE, AVAILABLE, restarted_at="2026-11-22T01:00:00Z"), "restart (2026-11-22T01:00:00Z)"),
        (deployment(COMPLETE, AVAILABLE, restartedAt="2026-11-22T01:00:00Z"), "restart (taken back)"),
    ],
)
def test_a_status_from_before_the_last_change_says_nothing(manifest: dict[str, Any], said: str) -> None:
    view = view_rollout(manifest)
    assert view.outcome is Outcome.NOT_OBSERVED
    assert said in view.message


def test_a_restart_that_was_seen_counts() -> None:
    at = "2026-11-22T01:00:00Z"
    assert view_rollout(deployment(COMPLETE, AVAILABLE, restarted_at=at, restartedAt=at)).outcome is Outcome.COMPLETE


@pytest.mark.parametrize(("generation", "outcome"), [(3, Outcome.FAILED), (2, Outcome.NOT_OBSERVED)])
def test_an_operator_that_cannot_read_the_spec_has_answered(generation: int, outcome: Outcome) -> None:
    manifest = deployment(COMPLETE, AVAILABLE, observedGeneration=2)
    degraded = ("Degraded", "True", "SpecNotUnderstood", "this operator cannot read the spec: pools: x")
    manifest["status"]["conditions"].append(condition(degraded, generation))
    assert view_rollout(manifest).outcome is outcome


def test_the_line_names_revision_pools_and_what_is_lacking() -> None:
    manifest = deployment(
        ("Progressing", "True", "WaitingForDevices", "1 of 2 replicas are ready; 1 wait for devices"),
        ("Unschedulable", "True", "DevicesMissing", "needs 2 x 8 nvidia.com/gpu; pool a100: 8 missing"),
        ("Degraded", "True", "NodeNotReady", "replicas run on nodes that are not ready: n1"),
        UNAVAILABLE,
        pools=[
            {"name": "a100", "replicas": 2, "ready": 1, "waiting": 1},
            {"name": "rngd", "replicas": 0, "ready": 0, "waiting": 0},
        ],
    )
    assert view_rollout(manifest).line == (
        "revision aaaaaaaaaa: 1 of 2 replicas are ready; 1 wait for devices; "
        "Unschedulable: needs 2 x 8 nvidia.com/gpu; pool a100: 8 missing; "
        "Degraded: replicas run on nodes that are not ready: n1 [a100 1/2 ready, 1 waiting for devices]"
    )


_SAYS = st.tuples(
    st.sampled_from(["Available", "Progressing", "Degraded", "Unschedulable", "NotAllowed", "NameConflict"]),
    st.sampled_from(["True", "False", "Unknown"]),
    st.sampled_from(["RolloutComplete", "Paused", "Stopped", "DeadlineExceeded", "NoPoolFits", "Other"]),
    st.just("why"),
)


@given(st.lists(_SAYS, unique_by=lambda says: says[0]), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_nothing_is_complete_unless_the_operator_says_so_of_this_generation(
    conditions: list[Says], observed: int, ready: int, stopped: bool
) -> None:
    spec = {"lifecycle": {"stopped": stopped}}
    manifest = deployment(*conditions, spec=spec, observedGeneration=observed, readyReplicas=ready)
    ModelDeploymentStatus.model_validate(manifest["status"])
    view = view_rollout(manifest)
    holds = {kind: (status, reason) for kind, status, reason, _ in conditions}
    if view.outcome is Outcome.COMPLETE:
        assert observed >= GENERATION
        assert holds["Progressing"][1] in ("RolloutComplete", "Paused", "Stopped")
        assert stopped or holds["Available"][0] == "True"
    assert view.line


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        (seen(replica()), Outcome.COMPLETE),
        (seen(want=1), Outcome.PROGRESSING),
        (seen(replica(revision=Revision("0"))), Outcome.PROGRESSING),
        (seen(replica(on=None), without_room=frozenset({ReplicaId("r")})), Outcome.PROGRESSING),
        (seen(replica(on=None), spec={"rollout": {"progressDeadlineSeconds": 60}}), Outcome.FAILED),
        (seen(replica(), replica("s", revision=Revision("0")), spec={"rollout": {"paused": True}}), Outcome.PAUSED),
        (seen(replica(), spec={"rollout": {"paused": True}}), Outcome.COMPLETE),
        (seen(options=[option(revision=None, refusal="too small")], want=1), Outcome.FAILED),
        (seen(options=[option(revision=None, refusal="is read", is_pending=True)], want=1), Outcome.PROGRESSING),
        (seen(may_run=False, want=1), Outcome.FAILED),
        (seen(may_run=False, want=1, spec={"lifecycle": {"stopped": True}}), Outcome.COMPLETE),
    ],
)
def test_what_the_operator_writes_is_understood(facts: DeploymentFacts, outcome: Outcome) -> None:
    report = deployment_status(facts, ReplicaPlan(()))
    conditions = merge_conditions((), report.statements, generation=facts.generation, now=facts.now)
    reasons = {each.type: each.reason for each in conditions}
    assert reasons["Progressing"] in set(ProgressReason)
    assert reasons.get("Unschedulable", UnschedulableReason.NO_POOL_FITS) in set(UnschedulableReason)
    metadata = {"name": facts.name, "namespace": facts.namespace, "generation": facts.generation}
    status = report.status.model_copy(update={"conditions": conditions})
    manifest = {"metadata": metadata, "spec": dump(facts.spec), "status": dump(status)}
    assert view_rollout(manifest).outcome is outcome


def dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
