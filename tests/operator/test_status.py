"""What people read in a status: which conditions there are, and that they name what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.schema import Condition
from hanmaru_operator.plan.replicas import plan_replicas
from hanmaru_operator.status import (
    MAX_MESSAGE_CHARS,
    DeploymentReport,
    deployment_status,
    listed,
    merge_conditions,
    pool_status,
)
from hanmaru_operator.types import ConditionType, DeploymentFacts, NodeName, PoolName, ReplicaPlan, Statement
from hanmaru_testing.operator_facts import (
    GPU,
    NOW,
    RACK,
    bound_pod,
    deployment,
    node,
    option,
    pool,
    replica,
    room_of,
)
from hanmaru_testing.small_world import Pool, World

NOTHING = ReplicaPlan(())


def said(report: DeploymentReport) -> dict[str, tuple[bool | None, str]]:
    return {one.type.value: (one.is_true, one.reason) for one in report.statements}


def message(report: DeploymentReport, kind: ConditionType) -> str:
    return next(one.message for one in report.statements if one.type is kind)


# --- deployments ---------------------------------------------------------------------------------------------------

STARTING = replica("s", pods=(bound_pod("s-0", is_ready=False),), lease=None)
STUCK = replica("s", pods=(bound_pod("s-0", is_ready=False, trouble="engine: image x cannot be pulled"),), lease=None)
WAITING = replica("w", on=None)
UNROOMED = {"without_room": frozenset({WAITING.id})}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(
            deployment(replica("r")),
            {"Available": (True, "AllReplicasReady"), "Progressing": (True, "RolloutComplete")},
            id="complete",
        ),
        pytest.param(
            deployment(replica("r"), STARTING),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (True, "StartingReplicas"),
            },
            id="starting",
        ),
        pytest.param(
            deployment(replica("r", revision="0"), STARTING, want=1),
            {"Available": (True, "AllReplicasReady"), "Progressing": (True, "ReplacingReplicas")},
            id="replacing",
        ),
        pytest.param(
            deployment(WAITING, **UNROOMED),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (True, "WaitingForDevices"),
                "Unschedulable": (True, "DevicesMissing"),
            },
            id="waiting",
        ),
        pytest.param(
            deployment(replica("r"), spec={"rollout": {"paused": True}}),
            {"Available": (True, "AllReplicasReady"), "Progressing": (None, "Paused")},
            id="paused",
        ),
        pytest.param(
            deployment(may_run=False, want=1, spec={"lifecycle": {"stopped": True}}),
            {"Available": (False, "Stopped"), "Progressing": (True, "Stopped")},
            id="stopped",
        ),
        pytest.param(
            deployment(may_run=False, want=1),
            {"Available": (False, "Refused"), "Progressing": (False, "Refused")},
            id="refused",
        ),
        pytest.param(
            deployment(options=[option("a", None, refusal="too small")], want=1),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (True, "StartingReplicas"),
                "Unschedulable": (True, "NoPoolFits"),
            },
            id="no pool fits",
        ),
        pytest.param(
            deployment(replica("r"), options=[option("a", max_replicas=1)], want=2),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (True, "StartingReplicas"),
                "Unschedulable": (True, "MaxReplicas"),
            },
            id="more than the pools may hold",
        ),
        pytest.param(
            deployment(replica("r"), unhealthy_nodes=frozenset({NodeName("n0")})),
            {
                "Available": (True, "AllReplicasReady"),
                "Progressing": (True, "RolloutComplete"),
                "Degraded": (True, "NodeNotReady"),
            },
            id="on a node that is not ready",
        ),
        pytest.param(
            deployment(STARTING, now=NOW + 3600),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (False, "DeadlineExceeded"),
                "Degraded": (True, "StartupTimeout"),
            },
            id="takes too long to start",
        ),
        pytest.param(
            deployment(STUCK),
            {
                "Available": (False, "MinimumUnavailable"),
                "Progressing": (True, "StartingReplicas"),
                "Degraded": (True, "PodsDoNotStart"),
            },
            id="does not start",
        ),
    ],
)
def test_conditions_say_what_is_so_and_no_more(
    facts: DeploymentFacts, expected: dict[str, tuple[bool | None, str]]
) -> None:
    assert said(deployment_status(facts, NOTHING)) == expected


def test_a_pod_that_does_not_start_is_named_with_what_its_kubelet_says() -> None:
    words = message(deployment_status(deployment(STUCK), NOTHING), ConditionType.DEGRADED)
    assert words == "pods do not start: s-0 (engine: image x cannot be pulled)"


def test_unschedulable_names_what_each_pool_lacks() -> None:
    shape = {"group_size": 2, "domain_key": RACK}
    options = [
        option("a100-40g", devices_missing=8, **shape),
        option("a100-80g", no_room="3 missing, best in rack-1", **shape),
        option("rngd", None, refusal="dtype bfloat16 is not among the pool's"),
    ]
    report = deployment_status(deployment(WAITING, options=options, **UNROOMED), NOTHING)
    assert message(report, ConditionType.UNSCHEDULABLE) == (
        f"needs 2 x 8 {GPU} in one {RACK}; pool a100-40g: 8 missing; pool a100-80g: 3 missing, best in rack-1; "
        "pool rngd: dtype bfloat16 is not among the pool's"
    )


def test_pools_that_need_different_groups_each_say_what_they_need() -> None:
    options = [option("a", group_size=2, domain_key=RACK, devices_missing=16), option("b", devices_missing=8)]
    report = deployment_status(deployment(WAITING, options=options, **UNROOMED), NOTHING)
    assert message(report, ConditionType.UNSCHEDULABLE) == (
        f"pool a needs 2 x 8 {GPU} in one {RACK}: 16 missing; pool b needs 1 x 8 {GPU}: 8 missing"
    )


def test_what_the_caller_knows_is_shown_and_joined() -> None:
    given = [
        Statement(ConditionType.NAME_CONFLICT, True, "RouteTaken", "route x belongs to ns/y"),
        Statement(ConditionType.EXPERIMENTAL, False, "Usual"),
        Statement(ConditionType.DEGRADED, True, "RedisUnavailable", "Redis does not answer"),
    ]
    facts = deployment(replica("r"), unhealthy_nodes=frozenset({NodeName("n0")}))
    report = deployment_status(facts, NOTHING, given)
    assert list(said(report)) == ["Available", "Progressing", "Degraded", "NameConflict"]
    assert (
        message(report, ConditionType.DEGRADED) == "replicas run on nodes that are not ready: n0; Redis does not answer"
    )


def test_counts_revisions_and_weights_add_up() -> None:
    facts = deployment(
        replica("r1"),
        replica("r2", revision="0"),
        replica("r3", pool="z", revision="0"),
        STARTING,
        replica("gone", is_terminating=True),
        options=[option("a"), option("b")],
    )
    status = deployment_status(facts, NOTHING).status
    assert (status.replicas, status.ready_replicas, status.revision) == (4, 3, "1")
    assert [(row.hash, row.replicas, row.ready) for row in status.revisions] == [("1", 2, 1), ("0", 2, 2)]
    assert sum(row.weight for row in status.revisions) == 100
    assert [(row.name, row.replicas, row.ready, row.waiting) for row in status.pools] == [
        ("a", 3, 2, 0),
        ("b", 0, 0, 0),
        ("z", 1, 1, 0),
    ]
    assert status.selector == "serving.hanmaru.dev/deployment=m,apps.kubernetes.io/pod-index=0"


@pytest.mark.parametrize(
    ("replicas", "more", "expected"),
    [
        pytest.param(
            [replica("r")], {"refusal": "too small"}, {"Progressing": (True, "RolloutComplete")}, id="runs already"
        ),
        pytest.param(
            [],
            {"refusal": "too small"},
            {"Progressing": (True, "StartingReplicas"), "Unschedulable": (True, "NoPoolFits")},
            id="refused",
        ),
        pytest.param([], {"is_pending": True}, {"Progressing": (True, "ReadingModel")}, id="not known yet"),
    ],
)
def test_a_refusal_is_told_when_something_is_wanted(
    replicas: list[Any], more: dict[str, Any], expected: dict[str, tuple[bool | None, str]]
) -> None:
    report = deployment_status(deployment(*replicas, options=[option("a", **more)], want=1), NOTHING)
    assert {kind: value for kind, value in said(report).items() if kind != "Available"} == expected


def test_a_time_that_has_passed_is_not_waited_for() -> None:
    late = deployment_status(deployment(STARTING, now=NOW + 1e5), NOTHING)
    assert message(late, ConditionType.PROGRESSING).startswith("no progress within 3600 s")
    assert late.look_again_at is None


# --- conditions over time ------------------------------------------------------------------------------------------


def raw(conditions: tuple[Condition, ...]) -> list[dict[str, Any]]:
    return [condition.model_dump(mode="json", by_alias=True) for condition in conditions]


def test_a_condition_keeps_its_time_while_its_status_is_the_same() -> None:
    first = merge_conditions([], [Statement(ConditionType.AVAILABLE, False, "X", "0")], generation=1, now=NOW)
    same = merge_conditions(
        raw(first), [Statement(ConditionType.AVAILABLE, False, "Y", "1")], generation=2, now=NOW + 9
    )
    other = merge_conditions(raw(same), [Statement(ConditionType.AVAILABLE, True, "Z")], generation=2, now=NOW + 9)
    assert [found[0].last_transition_time for found in (first, same, other)] == [
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:00:09Z",
    ]
    assert (same[0].reason, same[0].observed_generation) == ("Y", 2)


def test_an_unchanged_world_gives_the_same_bytes() -> None:
    world = World({"a": Pool(nodes=3, size=2), "b": Pool(nodes=0)}, replicas=2)
    for _ in range(6):
        world.round()
    written = []
    old: list[dict[str, Any]] = []
    for _ in range(3):
        facts = world.facts()
        report = deployment_status(facts, plan_replicas(facts, lambda: None), old_conditions=old)  # type: ignore[arg-type,return-value]
        old = raw(merge_conditions(old, report.statements, generation=1, now=facts.now))
        written.append((report.status.model_dump_json(by_alias=True), old))
        world.now += 60
    assert written[0] == written[1] == written[2]


def test_messages_and_lists_are_bounded() -> None:
    long = Statement(ConditionType.DEGRADED, True, "X", "x" * 5000)
    assert len(merge_conditions([], [long], generation=1, now=NOW)[0].message) == MAX_MESSAGE_CHARS
    assert listed(f"n{number}" for number in range(9)) == "n0, n1, n2, n3, n4 and 4 more"
    many = deployment(*(replica(f"r{number}", pool=f"p{number}", revision=f"{number}") for number in range(40)))
    status = deployment_status(many, NOTHING).status
    assert (len(status.pools), len(status.revisions)) == (16, 16)


# --- pools ---------------------------------------------------------------------------------------------------------


def test_a_pool_counts_its_nodes_devices_and_groups() -> None:
    rooms = [room_of("n0", 0), room_of("n1", 5), room_of("n2", 7, devices=7), room_of("n3", is_schedulable=False)]
    status, statements = pool_status(pool(*rooms), [replica("r"), WAITING, replica("gone", is_terminating=True)])
    assert (status.nodes, status.ready_nodes) == (4, 3)
    assert (status.devices.total, status.devices.allocatable, status.devices.used) == (32, 31, 11)
    assert (status.groups, status.waiting_groups) == (2, 1)
    assert {one.type.value: one.reason for one in statements} == {
        "Available": "NodesReady",
        "Degraded": "DevicesMissing",
    }


@pytest.mark.parametrize(
    ("rooms", "reason"),
    [
        ([], "NoNodes"),
        ([room_of("n0", is_ready=False), room_of("n1", is_schedulable=False)], "NoReadyNodes"),
        ([room_of("n0", 0, devices=0)], "NoDevices"),
    ],
)
def test_a_pool_that_can_take_nothing_says_why(rooms: list[Any], reason: str) -> None:
    _, statements = pool_status(pool(*rooms), [])
    assert (statements[0].is_true, statements[0].reason) == (False, reason)


def test_overlapping_nodes_and_their_owners_are_named() -> None:
    facts = pool(room_of("n0"), overlapping={NodeName("n1"): PoolName("older")})
    _, statements = pool_status(facts, [])
    assert statements[-1] == Statement(
        ConditionType.POOL_OVERLAP, True, "OlderPoolHasNodes", "nodes that belong to an older pool (older): n1"
    )


def test_a_node_in_repair_is_named() -> None:
    _, statements = pool_status(pool(room_of("n0"), room_of("n1", is_ready=False)), [])
    assert node("n1").name in statements[1].message
