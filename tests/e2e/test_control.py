"""What controls the system dies while the system works: Ray's head under load, the operator in a rollout."""

from __future__ import annotations

import time

import pytest
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT, LABEL_COMPONENT, LABEL_REVISION
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Manifest, is_ready, restarts, uids
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.world import Clients, Key, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def component(world: World, name: str) -> list[Manifest]:
    """Pods of a part of the release."""
    return world.kube.pods(names.NAMESPACE, f"{LABEL_COMPONENT}={name},app.kubernetes.io/instance={names.NAME}")


def test_the_ray_head_killed_under_load_fails_no_request(
    world: World, clients: Clients, demo: Key, model: str, progress: Progress
) -> None:
    gateways = component(world, "gateway")
    before = {pod["metadata"]["name"]: _starts(pod) for pod in gateways}
    [head] = component(world, "ray-head")
    with clients.load(demo, model) as load:
        world.kill_pod(names.NAMESPACE, head["metadata"]["name"])
        with progress.step("the head is ready again"):
            world.kube.wait(
                "the head is back",
                lambda: [pod for pod in component(world, "ray-head") if is_ready(pod) and _starts(pod) > _starts(head)],
                within_s=180,
            )
        with progress.step("ten more seconds of load"):
            time.sleep(10)
    progress.fact("rayHeadKilled", load.summary)
    load.require_no_failure()
    assert {pod["metadata"]["name"]: _starts(pod) for pod in component(world, "gateway")} == before


def test_the_operator_killed_in_the_middle_of_a_rollout_ends_it_all_the_same(
    world: World, clients: Clients, demo: Key, model: str, progress: Progress
) -> None:
    path = world.deployment_path(model, names.NAMESPACE)
    replicas = world.kube.get(path)["spec"]["replicas"]
    before = world.await_serving(model, replicas, namespace=names.NAMESPACE)
    old = set(uids(before).values())
    [revision] = {pod["metadata"]["labels"][LABEL_REVISION] for pod in before}
    with clients.load(demo, model) as load:
        # As `hanmaru rollout restart` does it: nothing of the spec, which is helm's to write.
        world.kube.patch(path, {"metadata": {"annotations": {ANNOTATION_RESTARTED_AT: "2026-01-01T00:00:00Z"}}})
        with progress.step("a pod of the new revision is there"):
            world.kube.wait(
                "the rollout has begun",
                lambda: set(uids(world.workers(model, names.NAMESPACE)).values()) - old,
                within_s=60,
            )
        [operator] = component(world, "operator")
        world.kill_pod(names.NAMESPACE, operator["metadata"]["name"])
        with progress.step("the rollout is complete"):
            pods = world.await_serving(model, replicas, namespace=names.NAMESPACE, within_s=500)
    progress.fact("operatorKilled", load.summary)
    load.require_no_failure()
    assert not old & set(uids(pods).values())
    assert revision not in {pod["metadata"]["labels"][LABEL_REVISION] for pod in pods}


def _starts(pod: Manifest) -> tuple[str, int]:
    """Later for each start of the pod or of its containers."""
    return pod["metadata"]["creationTimestamp"], restarts(pod)
