"""Devices on nodes: a group is held back until all of it fits.

The pods of this pool start and sleep, since no machine here has such devices: what is shown is that a real scheduler
and real kubelets bind them together, not that a model runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hanmaru_cluster.real import RealCluster
from hanmaru_contracts.crd.kinds import GROUP, VERSION
from hanmaru_contracts.names import GATE_GROUP
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Manifest
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.target import OTHER_NODE, SYSTEM_NODE
from hanmaru_e2e.world import MODELS, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
GPU = "nvidia.com/gpu"
NAME = "sixteen"
POOL = "gpus"


@pytest.fixture
def own(world: World, model: str) -> Iterator[RealCluster]:
    """The cluster; its nodes are nobody's. One belongs to the oldest pool that selects it, so that of cores is away."""
    own = world.target.own
    if own is None:
        pytest.skip("gives nodes devices that they do not have, which is done on the cluster made here alone")
    path = f"/apis/{GROUP}/{VERSION}/acceleratorpools/{names.POOL}"
    pool = world.kube.get(path)
    world.kube.kubectl("delete", "acceleratorpool", names.POOL)
    yield own
    world.undeploy(NAME)
    world.kube.kubectl("delete", "acceleratorpool", POOL, "--ignore-not-found")
    kept = {name: pool["metadata"][name] for name in ("name", "labels", "annotations") if name in pool["metadata"]}
    world.kube.apply({**pool, "metadata": kept, "status": {}})


def test_a_group_of_sixteen_devices_waits_for_the_second_node_and_is_bound_as_one(
    world: World, own: RealCluster, progress: Progress
) -> None:
    own.set_resource(SYSTEM_NODE, GPU, "8")
    world.claims(MODELS)
    world.pool(
        POOL,
        nodes={
            "selectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
            ]
        },
        devices={"type": "Resource", "resource": {"name": GPU}, "memory": "80Gi", "perNode": 8},
        capabilities={"maxContextTokens": 32768, "dtypes": ["bfloat16"], "features": ["hybrid-kv"]},
        podTemplate=world.sleeping_pool_template(),
    )
    # The tiny checkpoint has four heads: 16 devices hold four copies of its attention.
    parallelism = {"tensor": 16, "data": 4}
    world.deploy(NAME, POOL, serving={"contextTokens": 4096, "parallelism": parallelism})
    with progress.step("both pods are gated, and it is said why"):
        world.kube.wait("both pods are there", lambda: len(world.workers(NAME)) == 2, within_s=60)
        why = world.kube.wait("it says why", lambda: world.condition(NAME, "Unschedulable"), within_s=30)
    assert why["reason"] == "DevicesMissing"
    assert f"needs 2 x 8 {GPU}" in why["message"]
    assert all(_gates(pod) == [GATE_GROUP] for pod in world.workers(NAME))

    own.set_resource(OTHER_NODE, GPU, "8")
    with progress.step("both pods run"):
        pods = world.kube.wait("both run", lambda: _running(world.workers(NAME)), within_s=60)
    assert {pod["spec"]["nodeName"] for pod in pods} == {SYSTEM_NODE, OTHER_NODE}


def _gates(pod: Manifest) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates", ())]


def _running(pods: list[Manifest]) -> list[Manifest]:
    is_so = len(pods) == 2 and all(pod["status"].get("phase") == "Running" for pod in pods)
    return pods if is_so else []
