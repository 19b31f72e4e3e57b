"""Replicas are replaced, added and taken away within their bounds, and drain before anything of them goes."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hanmaru_cluster.kwok import HOLD_TERMINATION
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.operator_world import Manifest, World
from hanmaru_testing.pod_history import Moment, PodHistory
from hanmaru_testing.registrations import Registrations

ANOTHER_REVISION = {"serving": {"contextTokens": 65536}}
HELD = {"metadata": {"annotations": {HOLD_TERMINATION: "until the test lets go"}}}
_OBJECTS = (
    "services",
    "secrets",
    "serviceaccounts",
    "apis/apps/v1/statefulsets",
    "apis/networking.k8s.io/v1/networkpolicies",
    "apis/policy/v1/poddisruptionbudgets",
)


@pytest.mark.parametrize(
    ("num_nodes", "replicas", "rollout", "fewest_ready", "most_holding"),
    [
        pytest.param(3, 3, {"maxSurge": 0, "maxUnavailable": 1}, 2, 3, id="no surge on a full cluster"),
        pytest.param(4, 2, {"maxSurge": 1, "maxUnavailable": 0}, 2, 3, id="a surge of one never falls below"),
        pytest.param(2, 2, {}, 1, 2, id="nothing said and no device free gives one up"),
    ],
)
def test_a_rollout_keeps_its_bounds(
    world: World, num_nodes: int, replicas: int, rollout: Manifest, fewest_ready: int, most_holding: int
) -> None:
    world.add_nodes("rolled", num_nodes)
    world.deploy("k-exaone", [world.pool("rolled")], replicas=replicas, rollout=rollout)
    world.wait_ready("k-exaone", replicas)
    old = world.replicas("k-exaone")
    moments = roll_out(world, "k-exaone", replicas=replicas)
    assert min_ready(moments) == fewest_ready
    assert max_holding(moments) == most_holding
    assert world.replicas("k-exaone").isdisjoint(old)


def test_a_rollout_without_surge_waits_for_the_devices_of_what_drains(world: World) -> None:
    world.add_nodes("full", 2)
    rollout = {"maxSurge": 0, "maxUnavailable": 1}
    pool = world.pool("full", podTemplate=HELD)
    world.deploy("k-exaone", [pool], replicas=2, rollout=rollout, lifecycle={"drainSeconds": 3600})
    world.wait_ready("k-exaone", 2)
    history = PodHistory(world, "k-exaone")
    world.patch("k-exaone", ANOTHER_REVISION)
    for old in ("the first", "the second"):
        drained = world.wait(f"{old} drains", lambda: draining(world.pods("k-exaone")))
        assert len(drained) == len(world.serving("k-exaone")) == 1
        let_end(world, drained[0])
        gone = drained[0]["metadata"]["name"]
        world.wait(f"{old} is gone", lambda gone=gone: gone not in names_of(world.pods("k-exaone")))
    world.wait_ready("k-exaone", 2)
    assert min_ready(history.moments()) == 1
    assert max_holding(history.moments()) == 2


def test_a_paused_rollout_replaces_nothing_but_scales(world: World) -> None:
    world.add_nodes("roomy", 3)
    world.deploy("k-exaone", [world.pool("roomy")], rollout={"maxSurge": 1, "paused": True})
    status = world.wait(
        "one replica is ready",
        lambda: world.status("k-exaone").get("readyReplicas") == 1 and world.status("k-exaone"),
    )
    before, first_revision = world.replicas("k-exaone"), status["revision"]
    world.patch("k-exaone", ANOTHER_REVISION)
    world.wait("it knows the new revision", lambda: world.status("k-exaone")["revision"] != first_revision)
    paused = world.condition("k-exaone", "Progressing")
    assert (paused["status"], paused["reason"]) == ("Unknown", "Paused")
    assert "1 of 1 replicas run an old revision" in paused["message"]
    world.patch("k-exaone", {"replicas": 2})
    world.wait("the second is ready", lambda: world.status("k-exaone").get("readyReplicas") == 2)
    assert before < world.replicas("k-exaone")

    world.patch("k-exaone", {"rollout": {"paused": False}})
    world.wait_ready("k-exaone", 2)
    assert world.replicas("k-exaone").isdisjoint(before)


def test_kubectl_scales_a_deployment(world: World, kubectl: Kubectl) -> None:
    world.add_nodes("roomy", 3)
    world.deploy("k-exaone", [world.pool("roomy")])
    world.wait_ready("k-exaone")
    kubectl("-n", world.namespace, "scale", "modeldeployment/k-exaone", "--replicas=3")
    world.wait_ready("k-exaone", 3)
    kubectl("-n", world.namespace, "scale", "md/k-exaone", "--current-replicas=3", "--replicas=0")
    world.wait_ready("k-exaone", 0)
    assert not world.pods("k-exaone")


def test_an_autoscaler_brings_a_deployment_to_its_minimum(world: World, kubectl: Kubectl) -> None:
    world.add_nodes("roomy", 2)
    world.deploy("k-exaone", [world.pool("roomy")])
    world.wait_ready("k-exaone")
    kubectl("-n", world.namespace, "apply", "-f", "-", stdin=json.dumps(autoscaler("k-exaone", at_least=2)))
    world.wait("it asks for two", lambda: world.get("k-exaone")["spec"]["replicas"] == 2)
    world.wait_ready("k-exaone", 2)

    def sees_both() -> bool:
        path = f"/apis/autoscaling/v2/namespaces/{world.namespace}/horizontalpodautoscalers/k-exaone"
        return bool(world.api.get(path)["status"]["currentReplicas"] == 2)

    world.wait("it sees both", sees_both)


def test_scaling_down_removes_the_least_loaded(world: World, registrations: Registrations) -> None:
    world.add_nodes("roomy", 3)
    world.deploy("k-exaone", [world.pool("roomy")], replicas=3)
    world.wait_ready("k-exaone", 3)
    busy, idle, middling = sorted(world.replicas("k-exaone"))
    for replica, running in ((busy, 9), (idle, 0), (middling, 4)):
        registrations.write("k-exaone", replica, running_requests=running)
    world.patch("k-exaone", {"replicas": 2})
    world.wait_ready("k-exaone", 2)
    assert world.replicas("k-exaone") == {busy, middling}
    world.patch("k-exaone", {"replicas": 1})
    world.wait_ready("k-exaone", 1)
    assert world.replicas("k-exaone") == {busy}


def test_a_stopped_deployment_runs_nothing_and_comes_back(world: World) -> None:
    world.add_nodes("roomy", 1)
    world.deploy("k-exaone", [world.pool("roomy")])
    world.wait_ready("k-exaone")
    world.patch("k-exaone", {"lifecycle": {"stopped": True}})
    world.wait("nothing is left", lambda: not any(world.children("k-exaone", kind) for kind in _OBJECTS))
    world.wait("it says so", lambda: world.condition("k-exaone", "Progressing")["message"] == "no replica is left")
    assert world.condition("k-exaone", "Progressing")["reason"] == "Stopped"
    assert world.condition("k-exaone", "Available")["reason"] == "Stopped"
    world.patch("k-exaone", {"lifecycle": {"stopped": False}})
    world.wait_ready("k-exaone")


def test_a_draining_replica_keeps_everything_of_it_until_its_last_pod_is_gone(world: World) -> None:
    world.add_nodes("small", 2)
    pool = world.pool("small", memory="40Gi", podTemplate=HELD)
    world.deploy("k-exaone", [pool], lifecycle={"drainSeconds": 7})
    world.wait_ready("k-exaone")
    first, second = world.pods("k-exaone")
    assert [pod["spec"]["terminationGracePeriodSeconds"] for pod in (first, second)] == [22, 22]

    world.patch("k-exaone", {"replicas": 0})
    world.wait("both drain", lambda: all(is_draining(pod, grace_s=22) for pod in world.pods("k-exaone")))
    let_end(world, first)
    world.wait("one is left", lambda: len(world.pods("k-exaone")) == 1)
    world.wait("the status has seen it", lambda: world.status("k-exaone")["replicas"] == 0)
    left = {kind: len(world.children("k-exaone", kind)) for kind in _OBJECTS}
    assert left == dict.fromkeys(_OBJECTS, 1) | {"apis/apps/v1/statefulsets": 0}

    let_end(world, second)
    world.wait("nothing is left", lambda: not any(world.children("k-exaone", kind) for kind in _OBJECTS))
    assert not world.pods("k-exaone")


def roll_out(world: World, name: str, *, replicas: int) -> list[Moment]:
    """The counts while another revision takes the place of the present one."""
    history = PodHistory(world, name)
    world.patch(name, ANOTHER_REVISION)
    world.wait_ready(name, replicas, within_s=60)
    return history.moments()


def min_ready(moments: Iterable[Moment]) -> int:
    return min(moment.ready for moment in moments)


def max_holding(moments: Iterable[Moment]) -> int:
    return max(moment.holding for moment in moments)


def autoscaler(deployment: str, *, at_least: int) -> Manifest:
    target = {"apiVersion": "serving.hanmaru.dev/v1alpha1", "kind": "ModelDeployment", "name": deployment}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": deployment},
        "spec": {"scaleTargetRef": target, "minReplicas": at_least, "maxReplicas": 5},
    }


def is_draining(pod: Manifest, *, grace_s: int) -> bool:
    return pod["metadata"].get("deletionGracePeriodSeconds") == grace_s


def draining(pods: Iterable[Manifest]) -> list[Manifest]:
    return [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]


def names_of(pods: Iterable[Manifest]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def let_end(world: World, pod: Manifest) -> None:
    annotations = {"metadata": {"annotations": {HOLD_TERMINATION: None}}}
    world.api.patch(world.pod_path(pod["metadata"]["name"]), annotations)
