"""A rollout keeps its bounds at every moment, and it always ends."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import Rollout
from hanmaru_operator.plan.rollout import Bounds, bounds
from hanmaru_operator.types import DeleteReplica, Why
from hanmaru_testing.small_world import Pool, World
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({}, Bounds(1, 1, is_planned=True)),
        ({"maxSurge": 0}, Bounds(0, 1)),
        ({"maxSurge": 2}, Bounds(2, 0)),
        ({"maxUnavailable": 2}, Bounds(0, 2)),
        ({"maxUnavailable": 0}, Bounds(1, 0)),
        ({"maxSurge": 1, "maxUnavailable": 2}, Bounds(1, 2)),
    ],
)
def test_a_bound_that_is_absent_follows_from_the_other(rollout: dict[str, Any], expected: Bounds) -> None:
    assert bounds(Rollout.model_validate(rollout)) == expected


ROLLOUTS: list[dict[str, Any]] = [
    {},
    {"maxSurge": 0},
    {"maxSurge": 1},
    {"maxSurge": 2, "maxUnavailable": 1},
    {"maxUnavailable": 1},
    {"maxSurge": 0, "maxUnavailable": 3},
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rollout=st.sampled_from(ROLLOUTS),
    replicas=st.integers(1, 4),
    size=st.integers(1, 2),
    free=st.integers(0, 2),
    pools=st.integers(1, 2),
    dt_s=st.sampled_from([3.0, 10.0, 40.0]),
)
def test_a_rollout_keeps_its_bounds_and_ends(
    rollout: dict[str, Any], replicas: int, size: int, free: int, pools: int, dt_s: float
) -> None:
    world = full_world(rollout, replicas, size, free, pools)
    limits = bounds(Rollout.model_validate(rollout))
    assume(free or limits.is_planned or limits.unavailable)
    for pool in world.pools.values():
        pool.revision = "2"
    rounds = 0
    while sum(group.revision == "2" and group.is_ready for group in world.live) < replicas or world.holding > replicas:
        world.round(dt_s)
        rounds += 1
        assert world.ready >= replicas - (limits.unavailable if not free or not limits.is_planned else 0)
        assert world.holding <= replicas + limits.surge, world.summary()
        assert rounds < 400, world.summary()
    assert world.ready == replicas
    world.settle()


def full_world(rollout: dict[str, Any], replicas: int, size: int, free: int, pools: int) -> World:
    """All replicas are ready on as many nodes as they need, and there is room for `free` groups more, in pool a."""
    first = replicas if pools == 1 else (replicas + 1) // 2
    world = World(
        {"a": Pool(nodes=(first + free) * size, size=size)}
        | ({"b": Pool(nodes=(replicas - first) * size, size=size)} if pools == 2 and replicas > first else {}),
        replicas=replicas,
        rollout=rollout,
    )
    taken = world.node_names("a")[first * size :]
    for name in taken:
        world.take(name)
    world.settle()
    world.foreign.clear()
    assert world.ready == replicas
    return world


def test_a_model_that_fills_the_cluster_is_replaced_in_place() -> None:
    world = full_world({"maxSurge": 0}, replicas=1, size=2, free=0, pools=1)
    world.pools["a"].revision = "2"
    first = world.round()
    assert [type(step).__name__ for step in first.steps] == ["DeleteReplica"]
    assert not world.round().steps, "the successor is not made before the old one has drained"
    world.settle()
    assert [(group.revision, group.is_ready) for group in world.live] == [("2", True)]


def test_without_bounds_a_free_group_is_used_before_anything_is_taken_away() -> None:
    world = full_world({}, replicas=2, size=1, free=1, pools=1)
    world.pools["a"].revision = "2"
    while any(group.revision == "1" for group in world.groups.values()):
        world.round()
        assert world.ready >= 2


def test_surge_devices_taken_by_others_do_not_stall_a_rollout_without_bounds() -> None:
    world = full_world({}, replicas=2, size=1, free=1, pools=1)
    world.pools["a"].revision = "2"
    world.round(0.0)
    world.take("a2")
    world.settle()
    assert [group.revision for group in world.live] == ["2", "2"]
    assert world.ready == 2


def test_a_revision_that_never_starts_costs_no_more_than_the_bounds() -> None:
    world = full_world({"maxSurge": 1}, replicas=3, size=1, free=1, pools=1)
    world.bad_revisions.add("2")
    world.pools["a"].revision = "2"
    world.settle()
    assert world.ready == 3
    world.pools["a"].revision = "3"
    world.settle()
    assert [group.revision for group in world.live] == ["3", "3", "3"]


def test_replicas_of_a_broken_revision_are_all_replaced_at_once() -> None:
    world = World({"a": Pool(nodes=3)}, replicas=3, bad_revisions={"1"})
    world.settle()
    assert world.ready == 0
    world.pools["a"].revision = "2"
    assert sum(isinstance(step, DeleteReplica) and step.why is Why.REPLACED for step in world.round().steps) == 3
    world.settle()
    assert world.ready == 3


def test_a_paused_rollout_replaces_nothing_but_scales_and_repairs() -> None:
    world = full_world({}, replicas=2, size=1, free=2, pools=1)
    world.rollout = {"paused": True}
    world.pools["a"].revision = "2"
    assert not world.round().steps
    world.replicas = 3
    world.settle()
    assert sorted(group.revision for group in world.live) == ["1", "1", "2"]
    world.replicas = 2
    world.settle()
    assert sorted(group.revision for group in world.live) == ["1", "2"], "an old replica goes before a new one"
    world.rollout = {}
    world.settle()
    assert [group.revision for group in world.live] == ["2", "2"]
