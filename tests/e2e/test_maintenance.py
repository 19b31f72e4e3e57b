"""`kubectl drain` of a node with a worker and a gateway, under load: it ends by itself and fails no request."""

from __future__ import annotations

import pytest
from hanmaru_e2e import release as names
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.target import OTHER_NODE
from hanmaru_e2e.world import Clients, Key, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
DRAIN_S = 240


def test_a_drain_of_a_workers_node_ends_by_itself_and_fails_no_request(
    world: World, clients: Clients, demo: Key, model: str, progress: Progress
) -> None:
    if world.target.own is None:
        pytest.skip("drains a node, which is done on the cluster made here alone")
    world.kube.kubectl("-n", names.NAMESPACE, "scale", f"md/{model}", "--replicas=2")
    with progress.step("two replicas serve"):
        pods = world.await_serving(model, 2, namespace=names.NAMESPACE)
    assert OTHER_NODE in {pod["spec"]["nodeName"] for pod in pods}
    drain = ("drain", OTHER_NODE, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_S}s")
    try:
        with clients.load(demo, model) as load, progress.step("kubectl drain"):
            world.kube.kubectl(*drain, timeout_s=DRAIN_S + 30)
        progress.fact("drain", load.summary)
        load.require_no_failure()
        assert not [pod for pod in world.serving(model, names.NAMESPACE) if pod["spec"]["nodeName"] == OTHER_NODE]
    finally:
        world.kube.kubectl("uncordon", OTHER_NODE)
