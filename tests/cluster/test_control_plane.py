"""The control plane that other tests stand on does what they rely on."""

from __future__ import annotations

from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_testing.cluster_fixtures import Kubectl


def test_a_deployment_becomes_ready_on_the_nodes_that_its_selector_names(
    nodes: Nodes, namespace: str, kubectl: Kubectl, control_plane: ControlPlane
) -> None:
    nodes.add(2, capacity={"nvidia.com/gpu": "8"})
    kubectl("-n", namespace, "create", "deployment", "d", "--image=x", "--replicas=3")
    kubectl("-n", namespace, "rollout", "status", "deployment/d", "--timeout=20s")
