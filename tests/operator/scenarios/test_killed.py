"""The operator may die at any moment: what it makes in the end is what it would have made alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_testing.operator_process import OperatorProcess
from hanmaru_testing.operator_world import World
from hanmaru_testing.random_edits import CLAIMS, Edit, Ground, random_edits
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.world_picture import Picture, is_settled, picture

SEED = 20261122
EDITS = 50
SETTLE_S = 90.0
EDITS_A_KILL = 4
"""On average."""
SUFFIX = "twice"
"""Of both worlds, one after the other: names that go into hashes are the same."""
LEASE = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/hanmaru-operator"


def settled(world: World, redis: RedisServer, system: str) -> Picture:
    """The picture once it stays the same."""
    world.wait("all rollouts are complete", lambda: is_settled(world), within_s=SETTLE_S)
    last: list[Picture] = []

    def is_same() -> bool:
        last.append(picture(world, redis.client(), system))
        time.sleep(0.5)
        return is_settled(world) and len(last) > 1 and last[-1] == last[-2]

    world.wait("nothing changes any more", is_same, within_s=SETTLE_S)
    return last[-1]


def differences(expected: Picture, found: Picture) -> str:
    """Objects of one picture that the other lacks, each from where they first differ."""
    lines = []
    for kind in expected:
        alone = [each for each in expected[kind] if each not in found[kind]]
        killed = [each for each in found[kind] if each not in expected[kind]]
        for left, right in zip_longest(alone, killed, fillvalue=""):
            same = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), 0)
            shown = slice(max(0, same - 300), same + 300)
            lines.append(f"{kind}\n  left alone: {left[shown]}\n  killed:     {right[shown]}")
    return "\n".join(lines)


@contextmanager
def ground(plane: ControlPlane, namespace: str, system: str) -> Iterator[Ground]:
    plane.create_namespace(namespace)
    with Nodes(plane.api) as nodes, World(plane.api, namespace, nodes) as world:
        for claim in CLAIMS:  # whose volumes cannot have one name twice: they go slowly
            world.claim(claim)
        own, world.suffix = world.suffix, SUFFIX
        made = Ground(world, system)
        try:
            yield made
        finally:
            made.clear()
            world.suffix = own
            plane.api.delete(f"/api/v1/namespaces/{namespace}")


def make(edits: list[Edit], on: Ground, pause: Callable[[], None]) -> None:
    for number, edit in enumerate(edits):
        print(f"{number:3} {edit.text}")
        edit.do(on)
        pause()


def test_killed_again_and_again_it_ends_as_if_left_alone(
    control_plane: ControlPlane, own_operator: OperatorProcess, scenario_redis: RedisServer, system_namespace: str
) -> None:
    edits = random_edits(SEED, EDITS)
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    with ground(control_plane, "undisturbed", system_namespace) as quiet:
        make(edits, quiet, lambda: time.sleep(chance.uniform(0, 0.2)))
        expected = settled(quiet.world, scenario_redis, system_namespace)

    kills = 0

    def perhaps_kill() -> None:
        """Somewhere between its first request and a moment after it has caught up."""
        nonlocal kills
        if chance.random() > 1 / EDITS_A_KILL:
            return
        own_operator.await_event("leader.acquired")
        time.sleep(chance.uniform(0, 1.5))
        own_operator.kill()
        # It is dead for certain, so nobody has to wait for its lease to run out.
        control_plane.api.delete(LEASE.format(system_namespace))
        own_operator.start()
        kills += 1

    with ground(control_plane, "disturbed", system_namespace) as harried:
        make(edits, harried, perhaps_kill)
        print(f"killed {kills} times")
        harried.world.wait("all rollouts are complete", lambda: is_settled(harried.world), within_s=SETTLE_S)
        deadline = time.monotonic() + 20
        while (found := picture(harried.world, scenario_redis.client(), system_namespace)) != expected:
            if time.monotonic() > deadline:
                pytest.fail(f"after {kills} kills (seed {SEED}):\n{differences(expected, found)}")
            time.sleep(0.5)
    assert kills >= EDITS / EDITS_A_KILL / 2
