"""Groups start whole or not at all, the oldest first, and nobody else's gate is touched."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.names import GATE_GROUP, ReplicaId
from hanmaru_operator.plan.groups import digest_of
from hanmaru_operator.plan.lifts import Group, plan_lifts
from hanmaru_operator.types import LiftGate, NodeName, PodFacts
from hanmaru_testing.operator_facts import GATED, GPU, NOW, RACK, bound_pod, pod, pool, room_of
from hypothesis import given
from hypothesis import strategies as st

FOREIGN = (GATE_GROUP, "kueue.x-k8s.io/admission")


def group(name: str, *pods: PodFacts, age: float = 1000, size: int = 0, devices: float = 8) -> Group:
    return Group("ns", ReplicaId(name), size or len(pods), NOW - age, {GPU: float(devices)}, pods)


def gated(name: str, size: int = 1, age: float = 1000, devices: float = 8, **more: Any) -> Group:
    pods = [pod(f"{name}-{rank}", requests={GPU: float(devices)}, **more) for rank in range(size)]
    return group(name, *pods, age=age, devices=devices)


def lifted(plan: Any) -> dict[str, str]:
    return {lift.pod: lift.node for lift in plan.lifts}


def test_a_whole_group_is_lifted_onto_its_nodes() -> None:
    plan = plan_lifts(pool(room_of("n0"), room_of("n1")), [gated("r", 2)], NOW)
    together = digest_of([pod("r-0"), pod("r-1")])
    assert plan.lifts == (
        LiftGate("ns", "r-0", "uid-r-0", NodeName("n0"), together),
        LiftGate("ns", "r-1", "uid-r-1", NodeName("n1"), together),
    )
    assert [room.free[GPU] for room in plan.rooms] == [0, 0]
    assert not plan.without_room


def test_half_a_group_is_never_lifted() -> None:
    plan = plan_lifts(pool(room_of("n0"), room_of("n1", 4)), [gated("r", 2)], NOW)
    assert not plan.lifts
    assert plan.without_room[("ns", ReplicaId("r"))].devices_missing == 4
    assert plan.held_by == "ns/r"


@pytest.mark.parametrize(
    "given_group",
    [
        pytest.param(group("r", pod("r-0"), size=2), id="a pod is missing"),
        pytest.param(group("r", pod("r-0"), pod("r-1", is_terminating=True)), id="a pod is terminating"),
        pytest.param(group("r", pod("r-0"), pod("r-1", has_ended=True)), id="a pod has ended"),
        pytest.param(group("r", pod("r-0"), pod("r-1", gates=FOREIGN)), id="somebody else holds a pod"),
    ],
)
def test_a_group_that_cannot_start_is_neither_lifted_nor_in_anybodys_way(given_group: Group) -> None:
    plan = plan_lifts(pool(room_of("n0"), room_of("n1")), [given_group, gated("young", 2, age=1)], NOW)
    assert set(lifted(plan)) == {"young-0", "young-1"}
    assert not plan.without_room


def test_a_group_whose_pods_are_being_made_keeps_its_place() -> None:
    made = group("r", pod("r-0"), size=2, age=5)
    plan = plan_lifts(pool(room_of("n0"), room_of("n1")), [made, gated("young", 1, age=1)], NOW)
    assert not plan.lifts
    assert set(plan.without_room) == {("ns", "young")}


def test_the_oldest_is_first_and_the_young_wait_behind_it() -> None:
    rooms = pool(room_of("n0"), room_of("n1", 0))
    plan = plan_lifts(rooms, [gated("young", 1, age=10), gated("old", 2, age=20)], NOW)
    assert not plan.lifts
    assert plan.without_room[("ns", ReplicaId("young"))].message == "waits behind ns/old, which is older"


def test_a_group_that_could_never_fit_blocks_nobody() -> None:
    plan = plan_lifts(pool(room_of("n0")), [gated("young", 1, age=10), gated("giant", 2, age=20)], NOW)
    assert lifted(plan) == {"young-0": "n0"}
    assert set(plan.without_room) == {("ns", "giant")}
    assert not plan.held_by


def test_room_is_given_away_once() -> None:
    plan = plan_lifts(pool(room_of("n0")), [gated("a", age=30), gated("b", age=20)], NOW)
    assert lifted(plan) == {"a-0": "n0"}
    assert set(plan.without_room) == {("ns", "b")}


HALF = bound_pod("r-0", "n0", is_ready=False, gate_lifted_at=NOW - 5, lifted_with=digest_of([pod("r-0"), pod("r-1")]))


@pytest.mark.parametrize(
    ("second", "free", "expected"),
    [
        pytest.param(pod("r-1"), 8, {"r-1": "n1"}, id="completed in the domain of the first"),
        pytest.param(pod("r-1", planned_node="n1"), 0, {"r-1": "n1"}, id="its own planned room is not against it"),
        pytest.param(pod("r-1"), 4, {}, id="taken meanwhile: left for the bind timeout"),
        pytest.param(pod("r-1", planned_node="gone"), 8, {}, id="its node is gone"),
        pytest.param(pod("r-1", gates=FOREIGN), 8, {}, id="somebody else holds it"),
        pytest.param(pod("r-1", uid="another"), 8, {}, id="made anew: the whole group restarts instead"),
    ],
)
def test_a_half_lifted_group_is_completed_where_it_still_can_be(
    second: PodFacts, free: float, expected: dict[str, str]
) -> None:
    rooms = [room_of("n0", 0, "rack-0"), room_of("n1", free, "rack-0"), room_of("n2", 8, "rack-1")]
    plan = plan_lifts(pool(*rooms, domain_key=RACK), [group("r", HALF, second)], NOW)
    assert lifted(plan) == expected
    assert not plan.without_room


def test_a_group_that_is_lifted_already_is_left_alone() -> None:
    assert not plan_lifts(pool(room_of("n0", 0)), [group("r", bound_pod("r-0"))], NOW).lifts


@given(
    free=st.lists(st.integers(0, 8), max_size=5),
    asked=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 8])), max_size=6),
)
def test_groups_are_whole_within_one_domain_and_within_the_room(free: list[int], asked: list[tuple[int, int]]) -> None:
    rooms = [room_of(f"n{number}", devices, f"rack-{number % 2}") for number, devices in enumerate(free)]
    groups = [gated(f"g{number}", size, number, devices) for number, (size, devices) in enumerate(asked)]
    plan = plan_lifts(pool(*rooms, domain_key=RACK), groups, NOW)
    sent = lifted(plan)
    for each in groups:
        nodes = [sent.get(one.name) for one in each.pods]
        assert all(nodes) or not any(nodes)
        assert (each.key in plan.without_room) != all(nodes)
        assert len({int(str(name)[1:]) % 2 for name in nodes if name}) <= 1
    for room, left in zip(rooms, plan.rooms, strict=True):
        used = sum(one.requests[GPU] for each in groups for one in each.pods if sent.get(one.name) == room.node.name)
        assert left.free[GPU] == room.free[GPU] - used >= 0
    assert all(each.gates == GATED for one in groups for each in one.pods)
