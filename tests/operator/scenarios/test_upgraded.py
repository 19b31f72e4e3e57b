"""A newer operator, or a newer API beside this one, changes nothing that runs until its owner asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.crd.kinds import GROUP
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT, ENGINE_CONTAINER
from hanmaru_testing.crds import install
from hanmaru_testing.operator_process import OperatorProcess
from hanmaru_testing.operator_world import World, condition

NEWER = {
    "workerImages": {"SGLang": "worker:newer"},
    "traceEndpoint": "http://collector:4317",
    "imagePullPolicy": "IfNotPresent",
}
"""An upgrade as far as running pods are concerned: other defaults, and settings that render otherwise."""
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.{GROUP}"


def uids(world: World, name: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods(name)}


def images(world: World, name: str) -> set[str]:
    containers = [c for pod in world.pods(name) for c in pod["spec"]["containers"]]
    return {container["image"] for container in containers if container["name"] == ENGINE_CONTAINER}


def templates(world: World, name: str) -> dict[str, Any]:
    return {group["metadata"]["name"]: (group["metadata"]["generation"], group["spec"]) for group in world.groups(name)}


def ready_pods(world: World, name: str) -> int:
    pods = [pod for pod in world.pods(name) if "deletionTimestamp" not in pod["metadata"]]
    return sum(condition(pod, "Ready").get("status") == "True" for pod in pods)


def upgrade(operator: OperatorProcess) -> None:
    assert operator.stop() == 0
    operator.configure(**NEWER)
    operator.start()
    operator.await_event("resync.ended")


def outdated(world: World, name: str) -> bool:
    return condition(world.get(name), "DefaultsOutdated").get("status") == "True"


def test_changed_defaults_wait_until_the_owner_restarts(world: World, own_operator: OperatorProcess) -> None:
    world.add_nodes("big", 4)
    pool = world.pool("big", engine={"image": None})
    world.deploy("k-exaone", [pool], replicas=2, rollout={"maxSurge": 0, "maxUnavailable": 1})
    world.wait_ready("k-exaone", 2)
    assert images(world, "k-exaone") == {"worker:default"}
    before = uids(world, "k-exaone"), templates(world, "k-exaone")

    upgrade(own_operator)
    world.wait("the status says so", lambda: outdated(world, "k-exaone"))
    assert (uids(world, "k-exaone"), templates(world, "k-exaone")) == before

    # One more is made as the others are: a revision is what it was when it began.
    world.patch("k-exaone", {"replicas": 3})
    world.wait_ready("k-exaone", 3)
    assert images(world, "k-exaone") == {"worker:default"}
    assert uids(world, "k-exaone") >= before[0]

    world.annotate("k-exaone", ANNOTATION_RESTARTED_AT, "2026-11-22T12:00:00Z")
    seen: list[tuple[int, int]] = []

    def is_rolled_out() -> bool:
        # Read in this order: between the two readings a replica may only end.
        ready, groups = ready_pods(world, "k-exaone"), world.groups("k-exaone")
        seen.append((ready, len(groups)))
        return images(world, "k-exaone") == {"worker:newer"} and not outdated(world, "k-exaone")

    world.wait("every replica is of the newer revision", is_rolled_out, within_s=60)
    world.wait_ready("k-exaone", 3)
    assert not uids(world, "k-exaone") & before[0]
    assert min(ready for ready, _ in seen) >= 2
    assert max(groups for _, groups in seen) <= 3


@pytest.fixture
def newer_crd(control_plane: ControlPlane) -> Iterator[None]:
    """The API server serves a `spec.serving.dreams` and a `spec.newcomer` that this operator has never heard of."""
    version = control_plane.api.get(CRD)["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["newcomer"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    spec["serving"]["properties"]["dreams"] = {"type": "string"}
    control_plane.api.patch(CRD, {"spec": {"versions": [version]}})
    yield
    install(control_plane.api)


@pytest.mark.usefixtures("newer_crd")
def test_fields_of_a_newer_api_survive(world: World) -> None:
    world.add_nodes("big", 2)
    pool = world.pool("big")
    newer = {"newcomer": {"of": ["a", "newer"]}, "serving": {"dreams": "electric"}}

    def create() -> bool:
        """The API server takes a moment until it serves the newer schema; before, it drops what it does not know."""
        world.deploy("k-exaone", [pool], **newer)
        if "newcomer" in world.get("k-exaone")["spec"]:
            return True
        world.delete("k-exaone")
        return False

    world.wait("the newer schema is served", create)
    world.wait_ready("k-exaone")
    world.patch("k-exaone", {"replicas": 2})
    world.wait_ready("k-exaone", 2)
    spec = world.get("k-exaone")["spec"]
    assert spec["newcomer"] == newer["newcomer"]
    assert spec["serving"]["dreams"] == "electric"
