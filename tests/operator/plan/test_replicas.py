"""What is done about a deployment's replicas, one situation at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hanmaru_contracts.names import ReplicaId
from hanmaru_operator.plan.replicas import RETURN_AFTER_S, plan_replicas
from hanmaru_operator.status import deployment_status, merge_conditions
from hanmaru_operator.types import CreateReplica, DeleteReplica, DeploymentFacts, LeaseFacts, ReplicaFacts, Why
from hanmaru_testing.operator_facts import NOW, bound_pod, deployment, option, replica
from hanmaru_testing.small_world import Pool, World


def new_ids() -> Callable[[], ReplicaId]:
    ids = iter(range(100))
    return lambda: ReplicaId(f"new{next(ids)}")


def made(facts: DeploymentFacts) -> list[str]:
    """Pools of the replicas that are made now."""
    return [step.pool for step in plan_replicas(facts, new_ids()).steps if isinstance(step, CreateReplica)]


def deleted(facts: DeploymentFacts) -> dict[str, Why]:
    """Replicas that are deleted now, and why."""
    return {step.id: step.why for step in plan_replicas(facts, new_ids()).steps if isinstance(step, DeleteReplica)}


def in_pool(pool: str, name: str, **more: Any) -> ReplicaFacts:
    return replica(name, pool=pool, **more)


# --- where new ones go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "options", "expected"),
    [
        pytest.param(2, [option("a", free_groups=2), option("b", free_groups=2)], ["a", "a"], id="first choice"),
        pytest.param(3, [option("a", free_groups=1), option("b", free_groups=2)], ["a", "b", "b"], id="then the next"),
        pytest.param(2, [option("a"), option("b")], ["a", "a"], id="nowhere room: it waits for the first"),
        pytest.param(1, [option("a", fits_empty=False), option("b")], ["b"], id="not where it can never fit"),
        pytest.param(1, [option("a", None), option("b")], ["b"], id="not where it is refused"),
        pytest.param(1, [option("a", None)], [], id="refused everywhere"),
        pytest.param(
            3,
            [option("a", free_groups=9), option("b", free_groups=9, min_replicas=1)],
            ["b", "a", "a"],
            id="minimum first",
        ),
        pytest.param(
            1,
            [option("a", free_groups=9, min_replicas=1), option("b", free_groups=9, min_replicas=1)],
            ["a"],
            id="minima only as far as the replicas reach",
        ),
        pytest.param(
            2, [option("a", free_groups=9), option("b", min_replicas=1)], ["a", "b"], id="waits for its minimum"
        ),
        pytest.param(
            3, [option("a", free_groups=9, max_replicas=1), option("b", free_groups=9)], ["a", "b", "b"], id="maximum"
        ),
        pytest.param(3, [option("a", free_groups=9, max_replicas=1)], ["a"], id="no more than all maxima"),
        pytest.param(0, [option("a", free_groups=9, min_replicas=3)], [], id="none wanted"),
    ],
)
def test_new_replicas_go_where_they_are_wanted_and_fit(want: int, options: list[Any], expected: list[str]) -> None:
    assert made(deployment(options=options, want=want)) == expected


def test_a_replica_that_waits_in_a_full_pool_falls_back_to_one_with_room() -> None:
    options = [option("a"), option("b", free_groups=1)]
    waiting = in_pool("a", "w", on=None)
    facts = deployment(waiting, options=options, without_room=frozenset({waiting.id}))
    plan = plan_replicas(facts, new_ids())
    assert plan.steps == (
        DeleteReplica(waiting.id, Why.FELL_BACK),
        CreateReplica(ReplicaId("new0"), options[1].pool, "1"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("options", "without_room"),
    [
        pytest.param([option("a"), option("b")], True, id="no room there either"),
        pytest.param([option("a"), option("b", None, free_groups=1)], True, id="it cannot run there"),
        pytest.param([option("a"), option("b", free_groups=1, max_replicas=0)], True, id="it may not go there"),
        pytest.param([option("a", min_replicas=1), option("b", free_groups=1)], True, id="its pool's minimum keeps it"),
        pytest.param([option("a"), option("b", free_groups=1)], False, id="its pods are only being made"),
    ],
)
def test_a_waiting_replica_stays_where_it_is(options: list[Any], without_room: bool) -> None:
    waiting = in_pool("a", "w", on=None)
    facts = deployment(waiting, options=options, without_room=frozenset({waiting.id} if without_room else ()))
    assert not plan_replicas(facts, new_ids()).steps


@pytest.mark.parametrize(
    ("pending", "replicas"),
    [
        pytest.param("a", [], id="the first choice is not known yet: nothing is made in the second"),
        pytest.param("a", [replica("r", revision="0")], id="what runs in it stays"),
        pytest.param(
            "b", [replica("r", revision="0", pool="b")], id="what runs in it stays, whatever is free elsewhere"
        ),
    ],
)
def test_nothing_moves_before_it_is_known_what_the_pools_can_run(pending: str, replicas: list[ReplicaFacts]) -> None:
    options = [
        option(name, None if name == pending else "1", is_pending=name == pending, free_groups=name != pending)
        for name in "ab"
    ]
    assert not plan_replicas(deployment(*replicas, options=options, want=1), new_ids()).steps


# --- returning to a better pool ------------------------------------------------------------------------------------

BETTER = [option("a", free_groups=1), option("b")]


@pytest.mark.parametrize(
    ("free_for_s", "expected", "look"),
    [(None, [], None), (0.0, [], RETURN_AFTER_S), (299.0, [], 1.0), (300.0, ["a"], None), (-50.0, [], RETURN_AFTER_S)],
)
def test_a_replica_returns_once_the_better_pool_had_room_long_enough(
    free_for_s: float | None, expected: list[str], look: float | None
) -> None:
    since = None if free_for_s is None else NOW - free_for_s
    facts = deployment(in_pool("b", "r"), options=BETTER, preferred_free_since=since)
    assert made(facts) == expected
    assert not deleted(facts)
    assert plan_replicas(facts, new_ids()).look_again_at == (None if look is None else NOW + look)


def test_the_one_in_the_worse_pool_goes_when_its_successor_is_ready() -> None:
    old = in_pool("b", "old")
    starting = in_pool("a", "new", pods=(bound_pod("new-0", is_ready=False),), lease=None, created_at=NOW - 10)
    facts = deployment(old, starting, options=BETTER, want=1, preferred_free_since=NOW - 400)
    assert not plan_replicas(facts, new_ids()).steps
    assert deleted(deployment(old, in_pool("a", "new", created_at=NOW - 10), options=BETTER, want=1)) == {
        "old": Why.MOVED
    }


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"spec": {"rollout": {"paused": True}}}, id="paused"),
        pytest.param({"options": [option("a"), option("b")]}, id="the room is gone"),
        pytest.param({"options": [option("a", free_groups=1), option("b", min_replicas=1)]}, id="a minimum keeps it"),
        pytest.param({"options": [option("a", free_groups=1, max_replicas=0), option("b")]}, id="not allowed there"),
    ],
)
def test_a_replica_does_not_return(facts: dict[str, Any]) -> None:
    found = deployment(in_pool("b", "r"), **{"options": BETTER, "preferred_free_since": NOW - 1e4, **facts})
    assert not plan_replicas(found, new_ids()).steps


def test_a_full_pool_is_left_and_returned_to_without_a_gap() -> None:
    world = World({"a": Pool(nodes=1), "b": Pool(nodes=1)}, replicas=1)
    world.take("a0")
    world.settle()
    assert [group.pool for group in world.live] == ["b"]
    world.foreign.clear()
    began = world.now
    while [group.pool for group in world.live] != ["a"]:
        world.round()
        assert world.ready >= 1
        assert world.now < began + 600
    assert world.now >= began + RETURN_AFTER_S
    world.settle()


# --- scaling down --------------------------------------------------------------------------------------------------

BUSY, IDLE = LeaseFacts(True, 5, 2), LeaseFacts(True, 1, 0)


@pytest.mark.parametrize(
    ("keep", "go"),
    [
        pytest.param(replica("k"), replica("g", on=None), id="waiting first"),
        pytest.param(
            replica("k", pods=(bound_pod("k-0", is_ready=False),), lease=None),
            replica("g", on=None),
            id="waiting before not ready",
        ),
        pytest.param(replica("k"), replica("g", pods=(bound_pod("g-0", is_ready=False),), lease=None), id="not ready"),
        pytest.param(
            replica("k", revision="0"),
            replica("g", pods=(bound_pod("g-0", is_ready=False),), lease=None),
            id="not ready before old",
        ),
        pytest.param(replica("k", lease=IDLE), replica("g", revision="0", lease=BUSY), id="old before busy"),
        pytest.param(replica("k", lease=IDLE), in_pool("b", "g", lease=BUSY), id="worst pool before busy"),
        pytest.param(replica("k", lease=BUSY), replica("g", lease=IDLE), id="least loaded"),
        pytest.param(
            replica("k", lease=BUSY, created_at=NOW), replica("g", lease=IDLE), id="least loaded before youngest"
        ),
        pytest.param(replica("k", created_at=NOW - 9), replica("g", created_at=NOW - 5), id="youngest"),
        pytest.param(replica("k"), replica("g"), id="the same every time"),
    ],
)
def test_those_that_are_missed_least_go_first(keep: ReplicaFacts, go: ReplicaFacts) -> None:
    for order in ((keep, go), (go, keep)):
        facts = deployment(*order, options=[option("a"), option("b")], want=1, spec={"rollout": {"paused": True}})
        assert deleted(facts) == {"g": Why.SCALED_DOWN}


def test_scaling_to_zero_takes_everything() -> None:
    facts = deployment(replica("r"), replica("w", on=None), replica("old", revision="0"), want=0)
    assert deleted(facts).keys() == {"r", "w", "old"}


def test_a_deployment_that_may_not_run_ends_every_replica_once() -> None:
    facts = deployment(replica("r"), replica("gone", is_terminating=True), may_run=False)
    assert deleted(facts) == {"r": Why.STOPPED}
    assert not made(facts)


def test_a_maximum_that_was_lowered_moves_what_is_above_it() -> None:
    world = World({"a": Pool(nodes=2), "b": Pool(nodes=2)}, replicas=2)
    world.settle()
    world.pools["a"].maximum = 1
    for _ in range(30):
        world.round()
        assert world.ready >= 2
    assert Counter(group.pool for group in world.live) == {"a": 1, "b": 1}


def test_a_minimum_that_was_raised_is_met_without_a_gap() -> None:
    world = World({"a": Pool(nodes=2), "b": Pool(nodes=2)}, replicas=2, rollout={"maxSurge": 0})
    world.settle()
    world.pools["b"].minimum = 1
    for _ in range(30):
        world.round()
        assert world.ready >= 2
    assert Counter(group.pool for group in world.live) == {"a": 1, "b": 1}


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_refusal_ends_no_replica_that_has_nowhere_else_to_go() -> None:
    facts = deployment(replica("r", revision="0"), options=[option("a", None)])
    assert not plan_replicas(facts, new_ids()).steps


def test_a_refusal_of_new_replicas_leaves_current_ones_where_they_are() -> None:
    options = [option("a", refusal="nodes are time-sliced now"), option("b", free_groups=3)]
    assert not plan_replicas(deployment(replica("r"), options=options), new_ids()).steps
    grown = deployment(replica("r"), options=options, want=2)
    assert (made(grown), deleted(grown)) == (["b"], {})
    old = deployment(replica("r", revision="0"), options=options)
    assert (made(old), deleted(old)) == (["b"], {})
    alone = deployment(replica("r", revision="0"), options=options[:1])
    assert not plan_replicas(alone, new_ids()).steps


def test_a_refusal_moves_a_replica_only_once_its_successor_is_ready() -> None:
    options = [option("a", None), option("b", free_groups=1)]
    facts = deployment(replica("r"), options=options, spec={"rollout": {"maxSurge": 0}})
    assert (made(facts), deleted(facts)) == (["b"], {})
    facts = deployment(replica("r"), in_pool("b", "s"), options=options, want=1)
    assert deleted(facts) == {"r": Why.REPLACED}


def test_a_pool_that_is_no_longer_listed_is_left() -> None:
    world = World({"a": Pool(nodes=1), "z": Pool(nodes=1)}, replicas=1)
    world.take("a0")
    world.settle()
    del world.pools["z"]
    world.foreign.clear()
    world.settle()
    assert [(group.pool, group.is_ready) for group in world.live] == [("a", True)]


# --- clocks and speed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [0.0, NOW - 1e6, NOW + 1e9])
def test_a_clock_that_jumps_harms_nothing(now: float) -> None:
    facts = deployment(replica("r"), replica("s", on=("n1", "n2")), in_pool("b", "t"), options=BETTER, now=now)
    assert not plan_replicas(facts, new_ids()).steps
    deployment_status(facts, plan_replicas(facts, new_ids()))


def test_an_idle_deployment_costs_little() -> None:
    facts = deployment(*(replica(f"r{number}", on=("n0", "n1")) for number in range(2)), options=BETTER)
    plan = plan_replicas(facts, new_ids())
    conditions = merge_conditions([], deployment_status(facts, plan).statements, generation=1, now=NOW)
    old = [condition.model_dump(by_alias=True) for condition in conditions]
    durations = []
    for _ in range(200):
        began = time.perf_counter()
        report = deployment_status(facts, plan_replicas(facts, new_ids()), old_conditions=old)
        merge_conditions(old, report.statements, generation=1, now=NOW)
        durations.append(time.perf_counter() - began)
    assert sorted(durations)[100] < 0.0006, "0.3 ms is meant, twice that allowed on a busy machine"
