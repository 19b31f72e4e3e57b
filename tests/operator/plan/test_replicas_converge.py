"""Whatever happens, in whatever order: the decisions about replicas come to rest, and at rest everything is right.

A small world plays Kubernetes around the real decisions; hypothesis chooses pools, edits, faults and their times.
"""

from __future__ import annotations

from hanmaru_testing.small_world import Pool, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROLLOUTS = st.sampled_from([
    {},
    {"maxSurge": 0},
    {"maxSurge": 1},
    {"maxSurge": 2, "maxUnavailable": 1},
    {"maxUnavailable": 1},
    {"maxUnavailable": 2},
    {"maxSurge": 0, "maxUnavailable": 2},
])  # fmt: skip
POOLS = st.builds(
    Pool,
    nodes=st.integers(1, 4),
    size=st.integers(1, 2),
    racks=st.integers(1, 2),
    minimum=st.integers(0, 1),
    maximum=st.one_of(st.none(), st.integers(1, 3)),
)
WORLDS = st.builds(
    World,
    pools=st.lists(POOLS, min_size=1, max_size=3).map(lambda found: dict(zip("abc", found, strict=False))),
    replicas=st.integers(0, 4),
    rollout=ROLLOUTS,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from([
            "wait", "wait", "scale", "revise", "refuse", "pause", "rollout", "stop", "cordon", "uncordon", "lose",
            "return", "take", "leave", "evict", "minimum", "maximum", "redis", "drop", "remove", "jump",
            "doubt",
        ]),
        st.integers(0, 11),
    ),
    max_size=12,
)  # fmt: skip


def happen(world: World, what: str, number: int) -> None:
    names = list(world.pools)
    name = names[number % len(names)]
    pool = world.pools[name]
    nodes = world.node_names(name)
    node = nodes[number % len(nodes)]
    pods = [each for group in world.live for each in group.pods if not each.is_terminating]
    match what:
        case "scale":
            world.replicas = number % 5
        case "revise":
            for each in world.pools.values():
                each.revision = str(number)
        case "refuse":
            pool.revision = None if number % 2 else "1"
        case "doubt":
            pool.refusal, pool.is_pending = "some" if number % 2 else "", number % 3 == 0
        case "pause":
            world.rollout = {**world.rollout, "paused": number % 2 == 0}
        case "rollout":
            world.rollout = [{}, {"maxSurge": 0}, {"maxSurge": 1}, {"maxUnavailable": 1}][number % 4]
        case "stop":
            world.may_run = number % 2 == 0
        case "cordon":
            world.cordoned.add(node)
        case "uncordon":
            world.cordoned.clear()
        case "lose":
            world.lost[node] = world.now
        case "return":
            world.lost.clear()
        case "take" if len(world.foreign) < 3:
            world.take(node)
        case "leave":
            world.foreign.clear()
        case "evict" if pods:
            world.evict(pods[number % len(pods)].uid)
        case "remove" if pods:  # force-deleted: simply gone
            world.forget(pods[number % len(pods)].uid)
        case "minimum":
            pool.minimum = number % 2
        case "maximum":
            pool.maximum = None if number > 5 else number
            pool.minimum = min(pool.minimum, number)
        case "redis":
            world.redis_answers = number % 2 == 0
        case "drop" if len(names) > 1:
            del world.pools[names[-1]]
        case "jump":
            world.skew_s = 3600.0 * (number - 5)


@FAST
@given(world=WORLDS, edits=EDITS, data=st.data())
def test_it_comes_to_rest_whatever_happened(world: World, edits: list[tuple[str, int]], data: st.DataObject) -> None:
    for what, number in edits:
        happen(world, what, number)
        for _ in range(data.draw(st.integers(0, 4))):
            world.round()
    world.settle(rounds=400)


@FAST
@given(world=WORLDS, edits=EDITS, data=st.data())
def test_once_the_world_is_healthy_again_everything_is_as_it_was_asked_for(
    world: World, edits: list[tuple[str, int]], data: st.DataObject
) -> None:
    for what, number in edits:
        happen(world, what, number)
        for _ in range(data.draw(st.integers(0, 4))):
            world.round()
    world.lost.clear()
    world.cordoned.clear()
    world.foreign.clear()
    world.redis_answers = world.may_run = True
    world.rollout = {**world.rollout, "paused": False}
    for pool in world.pools.values():
        pool.nodes, pool.maximum, pool.refusal, pool.is_pending = 12, None, "", False
        pool.revision = "9"
    world.settle(rounds=400)
    assert len(world.groups) == world.ready == world.replicas, world.summary()
    assert all(group.revision == "9" for group in world.live)
    for name, pool in world.pools.items():
        here = sum(group.pool == name for group in world.live)
        wanted_elsewhere = sum(other.minimum for key, other in world.pools.items() if key < name)
        assert here >= min(pool.minimum, max(0, world.replicas - wanted_elsewhere)), world.summary()
