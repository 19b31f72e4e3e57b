"""Nodes that fail or are to be emptied, and groups that broke: the whole group is acted on, once."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.names import ReplicaId
from hanmaru_operator.plan.groups import digest_of
from hanmaru_operator.plan.maintenance import is_lost, restart_reason
from hanmaru_operator.plan.replicas import plan_replicas
from hanmaru_operator.types import CreateReplica, DeleteReplica, LeaseFacts, NodeName, RestartGroup, Why
from hanmaru_testing.operator_facts import NOW, bound_pod, deployment, option, pod, replica
from hanmaru_testing.small_world import Pool, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALIVE, DEAD = LeaseFacts(is_alive=True), LeaseFacts(is_alive=False)
N1 = frozenset({NodeName("n1")})


def new_ids() -> Any:
    ids = iter(range(100))
    return lambda: ReplicaId(f"new{next(ids)}")


# --- nodes that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease", "pod_facts", "expected"),
    [
        (ALIVE, {}, False),
        (DEAD, {}, True),
        (None, {}, False),
        (None, {"is_terminating": True}, True),
        (None, {"is_evicted": True}, True),
        (ALIVE, {"is_terminating": True}, True),
        (DEAD, {"has_ended": True}, False),
    ],
)
def test_a_replica_is_lost_when_two_witnesses_say_so(
    lease: LeaseFacts | None, pod_facts: dict[str, Any], expected: bool
) -> None:
    pods = (bound_pod("r-0", "n0"), bound_pod("r-1", "n1", is_ready=False, **pod_facts))
    assert is_lost(replica(pods=pods, lease=lease), N1) is expected
    assert not is_lost(replica(pods=pods, lease=lease), frozenset())


def test_a_lost_replica_is_replaced_at_once_under_a_new_name() -> None:
    facts = deployment(replica("r", on=("n1",), lease=DEAD), unhealthy_nodes=N1)
    plan = plan_replicas(facts, new_ids())
    assert plan.steps[0] == DeleteReplica(ReplicaId("r"), Why.NODE_LOST)
    assert [type(step) for step in plan.steps[1:]] == [CreateReplica]


def test_a_node_that_is_not_ready_with_a_live_lease_is_looked_at_again() -> None:
    facts = deployment(replica("r", on=("n1",), lease=ALIVE), unhealthy_nodes=N1)
    plan = plan_replicas(facts, new_ids())
    assert not plan.steps
    assert plan.look_again_at is not None
    assert NOW < plan.look_again_at <= NOW + 10


def test_a_replica_that_ends_on_a_lost_node_holds_back_no_successor() -> None:
    gone = replica("r", on=("n1",), is_terminating=True, lease=DEAD)
    facts = deployment(gone, want=1, unhealthy_nodes=N1, spec={"rollout": {"maxSurge": 0}})
    assert [type(step) for step in plan_replicas(facts, new_ids()).steps] == [CreateReplica]


def test_a_deployment_survives_losing_a_node_and_its_return() -> None:
    world = World({"a": Pool(nodes=3, size=2)}, replicas=1)
    world.settle()
    (before,) = world.live
    world.lost["a0"] = world.now
    world.settle()
    (after,) = world.live
    assert after.id != before.id
    assert after.is_ready
    assert before.id in world.groups, "nothing is force-deleted"
    world.lost.clear()
    world.settle()
    assert list(world.groups) == [after.id]


# --- nodes that someone wants empty --------------------------------------------------------------------------------


def test_a_cordoned_node_is_emptied_without_a_gap_when_devices_allow() -> None:
    world = World({"a": Pool(nodes=3)}, replicas=2)
    world.settle()
    world.cordoned.add("a0")
    for _ in range(20):
        world.round()
        assert world.ready >= 2
    assert world.ready == 2
    assert not any(each.node == "a0" for group in world.groups.values() for each in group.pods)


def test_a_cordoned_node_is_emptied_at_once_when_there_are_no_other_devices() -> None:
    world = World({"a": Pool(nodes=2, size=2)}, replicas=1)
    world.settle()
    world.cordoned.add("a0")
    plan = world.round()
    assert [type(step) for step in plan.steps] == [CreateReplica, DeleteReplica]
    for _ in range(3):
        world.round()
    assert [group.is_waiting for group in world.groups.values()] == [True], "the successor waits, gated"
    world.cordoned.clear()
    world.settle()
    assert world.ready == 1


def test_all_groups_of_a_cordoned_node_leave_each_by_its_own() -> None:
    on_n1 = [replica(name, on=("n1",)) for name in ("p", "q")]
    facts = deployment(*on_n1, options=[option(free_groups=1)], cordoned_nodes=N1)
    plan = plan_replicas(facts, new_ids())
    assert sum(isinstance(step, CreateReplica) for step in plan.steps) == 2
    assert sum(step == DeleteReplica(step.id, Why.NODE_CORDONED) for step in plan.steps) == 1, (
        "one waits for its successor"
    )


def test_a_successor_that_does_not_start_in_time_is_not_waited_for() -> None:
    world = World({"a": Pool(nodes=2)}, replicas=1, bad_revisions={"2"})
    world.settle()
    world.pools["a"].revision, world.rollout = "2", {"paused": True}
    world.cordoned.add("a0")
    for _ in range(10):
        world.round()
    assert world.ready == 1
    for _ in range(370):
        world.round()
    assert not any(each.node == "a0" for group in world.groups.values() for each in group.pods)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    nodes=st.integers(1, 4),
    size=st.integers(1, 2),
    replicas=st.integers(1, 3),
    rollout=st.sampled_from([{}, {"maxSurge": 0}, {"maxSurge": 1}, {"paused": True}]),
    revises=st.booleans(),
    waits=st.integers(0, 6),
)
def test_draining_a_node_always_finishes(
    nodes: int, size: int, replicas: int, rollout: dict[str, Any], revises: bool, waits: int
) -> None:
    world = World({"a": Pool(nodes=nodes, size=size)}, replicas=replicas, rollout=rollout)
    for _ in range(waits):
        world.round()
    if revises:
        world.pools["a"].revision = "2"
    world.cordoned.add("a0")
    for _ in range(60):
        world.round()
    assert not any(each.node == "a0" for group in world.groups.values() for each in group.pods), world.summary()


# --- groups that broke ---------------------------------------------------------------------------------------------

WITH_R1 = {"lifted_with": digest_of([pod("r-0"), pod("r-1")])}
ANEW = {"uid": "another"}
BROKEN, NOT_BOUND = Why.GROUP_BROKEN, Why.NOT_BOUND
LATE = {"node": None, "planned_node": "n1", "is_ready": False}
ENDING = {"is_terminating": True}
JUST = {"gate_lifted_at": NOW - 9}


@pytest.mark.parametrize(
    ("pods", "size", "expected"),
    [
        pytest.param([bound_pod("r-0"), bound_pod("r-1")], 2, None, id="whole"),
        pytest.param([bound_pod("r-0"), bound_pod("r-1", is_ready=False)], 2, None, id="unready"),
        pytest.param([], 2, None, id="not made yet"),
        pytest.param([pod("r-0")], 2, None, id="half made"),
        pytest.param([pod("r-0"), pod("r-1")], 2, None, id="gated"),
        pytest.param([pod("r-0", is_terminating=True), pod("r-1")], 2, None, id="gated and deleted"),
        pytest.param([bound_pod("r-0")], 2, BROKEN, id="missing"),
        pytest.param([bound_pod("r-0"), bound_pod("r-1", is_terminating=True)], 2, BROKEN, id="terminating"),
        pytest.param([bound_pod("r-0"), bound_pod("r-1", is_evicted=True)], 2, BROKEN, id="evicted"),
        pytest.param([bound_pod("r-0"), bound_pod("r-1", has_ended=True)], 2, BROKEN, id="ended"),
        pytest.param([bound_pod("r-0", **WITH_R1), bound_pod("r-1", **WITH_R1)], 2, None, id="as it was lifted"),
        pytest.param([bound_pod("r-0", **WITH_R1), pod("r-1", **ANEW)], 2, BROKEN, id="made anew"),
        pytest.param([bound_pod("r-0", **WITH_R1, **JUST), pod("r-1", **ANEW)], 2, BROKEN, id="made anew at once"),
        pytest.param([bound_pod("r-0", **ENDING), bound_pod("r-1", **ENDING)], 2, None, id="restarting"),
        pytest.param([pod("r-0", **ANEW), bound_pod("r-1", **ENDING)], 2, None, id="restarting, first is back"),
        pytest.param([bound_pod("r-0", has_ended=True)], 1, None, id="its StatefulSet makes it anew"),
        pytest.param([bound_pod("r-0", **JUST), bound_pod("r-1", **LATE, **JUST)], 2, None, id="binding"),
        pytest.param([bound_pod("r-0"), bound_pod("r-1", **LATE)], 2, NOT_BOUND, id="half bound for too long"),
        pytest.param([bound_pod("r-0", **LATE)], 1, NOT_BOUND, id="unbound for too long"),
        pytest.param([bound_pod("r-0", **LATE, gate_lifted_at=NOW + 1e6)], 1, NOT_BOUND, id="lifted far in the future"),
        pytest.param([bound_pod("r-0", **LATE, gate_lifted_at=NOW + 20)], 1, None, id="lifted a little in the future"),
        pytest.param([bound_pod("r-0"), pod("r-1")], 2, NOT_BOUND, id="half lifted"),
        pytest.param([bound_pod("r-0", **LATE, is_terminating=True)], 1, None, id="already taken back"),
    ],
)  # fmt: skip
def test_a_group_restarts_whole_when_part_of_it_is_gone_or_never_came(
    pods: list[Any], size: int, expected: Why | None
) -> None:
    group = replica(pods=tuple(pods), size=size)
    assert restart_reason(group, 300.0, NOW) is expected
    plan = plan_replicas(deployment(group), new_ids())
    assert plan.steps == (() if expected is None else (RestartGroup(group.id, expected),))


def test_the_bind_timeout_is_looked_at_when_it_is_due() -> None:
    group = replica(pods=(bound_pod("r-0", **LATE, gate_lifted_at=NOW - 100),))
    assert plan_replicas(deployment(group, options=[option(bind_timeout_s=120.0)]), new_ids()).look_again_at == NOW + 20


def test_a_replica_that_is_deleted_anyway_is_not_restarted() -> None:
    group = replica(pods=(bound_pod("r-0", is_evicted=True, is_ready=False),), lease=None)
    plan = plan_replicas(deployment(group, want=0), new_ids())
    assert plan.steps == (DeleteReplica(group.id, Why.SCALED_DOWN),)


def test_an_evicted_pod_takes_its_group_along_and_the_group_comes_back() -> None:
    world = World({"a": Pool(nodes=2, size=2)}, replicas=1)
    world.settle()
    (before,) = world.live
    world.evict(before.pods[1].uid)
    plan = world.round()
    assert plan.steps == (RestartGroup(before.id, Why.GROUP_BROKEN),)
    world.settle()
    (after,) = world.live
    assert (after.id, after.is_ready) == (before.id, True)
    assert not {each.uid for each in before.pods} & {each.uid for each in after.pods}


def test_devices_taken_after_the_gates_were_lifted_send_the_group_back_behind_its_gate() -> None:
    world = World({"a": Pool(nodes=2, size=2)}, replicas=1)
    world.round()
    world.round(stolen=("a1",))
    (group,) = world.live
    assert [each.node for each in group.pods] == ["a0", None]
    assert {
        step.why for plan in (world.round() for _ in range(40)) for step in plan.steps if isinstance(step, RestartGroup)
    } == {Why.NOT_BOUND}
    assert world.holding == 0, "half a group holds nothing"
    world.foreign.clear()
    world.settle()
    assert world.ready == 1
