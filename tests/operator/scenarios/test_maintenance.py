"""Nodes are emptied, fail and vanish, pods are evicted: the whole group moves or starts anew, never half of it."""

from __future__ import annotations

import pytest
from hanmaru_cluster.api import ApiError
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.operator_world import Manifest, World
from hanmaru_testing.pod_history import PodHistory
from hanmaru_testing.registrations import Registrations

GRACE_S = 16
"""Of the pods: a second of draining, and 15."""


def test_draining_a_node_brings_the_replica_elsewhere_first(world: World, kubectl: Kubectl) -> None:
    world.add_nodes("roomy", 2)
    world.deploy("k-exaone", [world.pool("roomy")])
    world.wait_ready("k-exaone")
    [before] = world.replicas("k-exaone")
    [pod] = world.pods("k-exaone")
    history = PodHistory(world, "k-exaone")
    drain(kubectl, pod["spec"]["nodeName"])
    world.wait_ready("k-exaone")
    assert world.replicas("k-exaone").isdisjoint({before})
    assert min(moment.ready for moment in history.moments()) == 1
    assert max(moment.holding for moment in history.moments()) == 2


def test_draining_a_node_ends_the_whole_group_together_when_no_devices_are_spare(
    world: World, kubectl: Kubectl
) -> None:
    world.add_nodes("small", 2)
    pool = world.pool("small", memory="40Gi")
    world.deploy("k-exaone", [pool])
    world.wait_ready("k-exaone")
    old = world.pods("k-exaone")
    history = PodHistory(world, "k-exaone", group_size=2)
    node = old[0]["spec"]["nodeName"]
    drain(kubectl, node)
    world.wait("its successor waits", lambda: world.condition("k-exaone", "Unschedulable"))
    assert f"pool {pool}: 8 missing" in world.condition("k-exaone", "Unschedulable")["message"]
    told = [version["metadata"] for version in history.versions() if "deletionTimestamp" in version["metadata"]]
    first_told = {each["uid"]: each["deletionGracePeriodSeconds"] for each in reversed(told)}
    assert [first_told[pod["metadata"]["uid"]] for pod in old] == [GRACE_S, GRACE_S]
    assert not any(pod["spec"].get("nodeName") for pod in world.pods("k-exaone"))

    kubectl("uncordon", node)
    world.wait_ready("k-exaone")


def test_a_group_whose_pod_is_deleted_starts_anew_whole(world: World) -> None:
    world.add_nodes("small", 2)
    world.deploy("k-exaone", [world.pool("small", memory="40Gi")])
    world.wait_ready("k-exaone")
    [replica] = world.replicas("k-exaone")
    first, second = world.pods("k-exaone")
    world.delete_pod(second["metadata"]["name"])
    world.wait("all its pods are others", lambda: are_all_others(world.pods("k-exaone"), [first, second]))
    world.wait_ready("k-exaone")
    assert world.replicas("k-exaone") == {replica}


def test_a_group_is_not_taken_apart_by_an_eviction_and_starts_anew_whole_when_one_is_forced(world: World) -> None:
    world.add_nodes("small", 2)
    world.deploy("k-exaone", [world.pool("small", memory="40Gi")])
    world.wait_ready("k-exaone")
    first, second = world.pods("k-exaone")
    name = second["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    with pytest.raises(ApiError, match=r"^429"):
        world.api.create(f"{world.pod_path(name)}/eviction", eviction)
    # As the kubelet under pressure, and the controllers that do not ask a budget: they say so, and end the pod.
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": ""}
    conditions = [*second["status"]["conditions"], target]
    world.api.patch(f"{world.pod_path(name)}/status", {"status": {"phase": "Failed", "conditions": conditions}})
    world.wait("all its pods are others", lambda: are_all_others(world.pods("k-exaone"), [first, second]))
    world.wait_ready("k-exaone")


def test_a_replica_on_a_silent_node_is_left_alone_while_it_answers_and_replaced_when_it_does_not(
    world: World, registrations: Registrations
) -> None:
    world.add_nodes("roomy", 2)
    world.deploy("k-exaone", [world.pool("roomy")])
    world.wait_ready("k-exaone")
    [before] = world.replicas("k-exaone")
    [pod] = world.pods("k-exaone")
    node = pod["spec"]["nodeName"]
    registrations.write("k-exaone", before)
    history = PodHistory(world, "k-exaone")
    world.nodes.cut(node)
    said = world.wait("it says that the node is away", lambda: world.condition("k-exaone", "Degraded"))
    assert said["reason"] == "NodeNotReady"
    assert node in said["message"]
    assert {version["metadata"]["uid"] for version in history.versions()} == {pod["metadata"]["uid"]}

    registrations.expire("k-exaone", before)
    world.wait("another replica serves", lambda: world.serving("k-exaone") - {before})
    assert world.replicas("k-exaone").isdisjoint({before})
    # The old pod is told to end in its own time, and nobody declares it dead while its node cannot be asked.
    [old] = world.pods("k-exaone", before)
    assert old["metadata"]["deletionGracePeriodSeconds"] == GRACE_S
    assert world.children("k-exaone", "apis/networking.k8s.io/v1/networkpolicies") >= {before}

    world.nodes.restore(node)
    world.wait("the old one ends by itself", lambda: not world.pods("k-exaone", before))
    world.wait("nothing is left of it", lambda: before not in world.children("k-exaone", "secrets"))
    world.wait_ready("k-exaone")


def test_a_group_whose_node_is_deleted_is_replaced(world: World, registrations: Registrations) -> None:
    world.add_nodes("small", 4)
    world.deploy("k-exaone", [world.pool("small", memory="40Gi")])
    world.wait_ready("k-exaone")
    [before] = world.replicas("k-exaone")
    gone, alive = world.pods("k-exaone", before)
    registrations.write("k-exaone", before)
    registrations.expire("k-exaone", before)
    world.nodes.remove(gone["spec"]["nodeName"])
    world.wait("another replica serves", lambda: world.serving("k-exaone") - {before})
    assert world.replicas("k-exaone").isdisjoint({before})
    world.wait("its pod on a living node has drained", lambda: not is_there(world, alive))


def drain(kubectl: Kubectl, node: str) -> None:
    """As an administrator does before working on a node; it waits until the node is empty."""
    kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")


def are_all_others(pods: list[Manifest], before: list[Manifest]) -> bool:
    old = {pod["metadata"]["uid"] for pod in before}
    return len(pods) == len(before) and not old & {pod["metadata"]["uid"] for pod in pods}


def is_there(world: World, pod: Manifest) -> bool:
    return pod["metadata"]["uid"] in {each["metadata"]["uid"] for each in world.pods("k-exaone")}
