"""Deployments become groups of pods on nodes that fit, whole or not at all."""

from __future__ import annotations

from hanmaru_testing.operator_world import GPU, RACK, World


def test_k_exaone_runs_on_two_nodes_of_one_rack(world: World) -> None:
    world.add_nodes("small", 1, rack="r1")
    world.add_nodes("small", 2, rack="r2")
    world.add_nodes("other", 1, rack="r1")
    small, other = world.pool("small", memory="40Gi"), world.pool("other", memory="16Gi")
    world.deploy("k-exaone", [other, small])
    status = world.wait_ready("k-exaone")
    pods = world.pods("k-exaone")
    racks = {world.api.get(f"/api/v1/nodes/{pod['spec']['nodeName']}")["metadata"]["labels"][RACK] for pod in pods}
    assert len(pods) == 2
    assert racks == {"r2"}
    assert all(pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "8" for pod in pods)
    plans = {plan["pool"]: plan for plan in status["plan"]}
    assert not plans[other]["fits"]
    assert (plans[small]["nodes"], plans[small]["devices"]) == (2, 16)
