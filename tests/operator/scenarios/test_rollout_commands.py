"""`hanmaru rollout` against the operator itself: what one writes the other waits for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.operator_world import World

WAIT_S = 60

Hanmaru = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hanmaru(control_plane: ControlPlane, world: World) -> Hanmaru:
    """`hanmaru rollout …` as a user runs it."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hanmaru_cli", "rollout", *arguments, "-n", world.namespace]
        command += ["--kubeconfig", str(control_plane.kubeconfig)]
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S + 10, check=False)

    return run


def follow(hanmaru: Hanmaru, world: World, name: str) -> str:
    """Wait for the rollout's end; the last line."""
    done = hanmaru("status", name, "--timeout", f"{WAIT_S}s")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{world.tell()}"
    return done.stdout.splitlines()[-1]


def test_a_new_deployment_is_followed_from_its_first_second(world: World, hanmaru: Hanmaru) -> None:
    world.add_nodes("big", 1)
    world.deploy("k-exaone", [world.pool("big")])
    assert "rolled out, 1 of 1 replicas are ready" in follow(hanmaru, world, "k-exaone")


def test_after_a_restart_every_replica_is_new_when_the_command_returns(world: World, hanmaru: Hanmaru) -> None:
    world.add_nodes("big", 2)
    world.deploy("k-exaone", [world.pool("big")])
    world.wait_ready("k-exaone")
    before = {group["metadata"]["name"] for group in world.groups("k-exaone")}
    revision = world.status("k-exaone")["revision"]
    assert hanmaru("restart", "md/k-exaone").returncode == 0
    follow(hanmaru, world, "k-exaone")
    assert not before & {group["metadata"]["name"] for group in world.groups("k-exaone")}
    assert world.status("k-exaone")["revision"] != revision


def test_a_paused_change_waits_for_resume(world: World, hanmaru: Hanmaru) -> None:
    world.add_nodes("big", 2)
    world.deploy("k-exaone", [world.pool("big")])
    world.wait_ready("k-exaone")
    before = {group["metadata"]["name"] for group in world.groups("k-exaone")}
    assert hanmaru("pause", "k-exaone").returncode == 0
    assert "rolled out and paused" in follow(hanmaru, world, "k-exaone")
    world.patch("k-exaone", {"serving": {"contextTokens": 4096}})
    paused = hanmaru("status", "k-exaone", "--timeout", "5s")
    assert paused.returncode == 1
    assert "hanmaru rollout resume k-exaone" in paused.stderr
    assert {group["metadata"]["name"] for group in world.groups("k-exaone")} == before
    assert hanmaru("resume", "k-exaone").returncode == 0
    follow(hanmaru, world, "k-exaone")
    assert not before & {group["metadata"]["name"] for group in world.groups("k-exaone")}


def test_a_model_that_fits_nowhere_ends_the_wait_with_the_planners_words(world: World, hanmaru: Hanmaru) -> None:
    world.add_nodes("small", 1)
    world.deploy("k-exaone", [world.pool("small", memory="8Gi")])
    done = hanmaru("status", "k-exaone", "--timeout", f"{WAIT_S}s")
    assert done.returncode == 1
    assert "does not roll out: Unschedulable" in done.stderr
    assert "is being read" not in done.stderr
