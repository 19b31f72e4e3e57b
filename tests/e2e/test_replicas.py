"""Two replicas: both serve, and losing one of them, or its whole node, is repaired while the other one answers."""

from __future__ import annotations

import json
import time

import pytest
from hanmaru_contracts.metrics import WORKER_RUNNING_REQUESTS
from hanmaru_contracts.names import SUPERVISOR_HTTP_PORT
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Manifest, condition, restarts
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.target import OTHER_NODE
from hanmaru_e2e.world import Clients, Key, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
LOST_AT_MOST = 8
"""Requests that may end with an error when a worker dies under them: what it had begun, for each caller and try."""


@pytest.fixture(scope="module")
def replicas(world: World, model: str, progress: Progress) -> list[Manifest]:
    """Pods of two replicas, on two nodes."""
    world.kube.kubectl("-n", names.NAMESPACE, "scale", f"md/{model}", "--replicas=2")
    with progress.step("the second replica serves"):
        return world.await_serving(model, 2, namespace=names.NAMESPACE)


def test_scaling_to_two_replicas_serves_from_both(
    world: World, clients: Clients, demo: Key, model: str, replicas: list[Manifest], progress: Progress
) -> None:
    if world.target.own is not None:
        assert len({pod["spec"]["nodeName"] for pod in replicas}) == 2
    urls = [f"http://{pod['status']['podIP']}:{SUPERVISOR_HTTP_PORT}/metrics" for pod in replicas]
    with clients.load(demo, model, callers=6) as load, progress.step("both are watched under load"):
        most = json.loads(clients.run("watch_workers.py", "12", WORKER_RUNNING_REQUESTS.name, *urls))
    load.require_no_failure()
    if world.target.own is None and all(value is None for value in most.values()):
        pytest.skip("the network keeps clients from the workers' metrics")
    assert all(value for value in most.values()), most


def test_a_killed_worker_costs_what_it_had_begun_and_comes_back(
    world: World, clients: Clients, demo: Key, model: str, replicas: list[Manifest], progress: Progress
) -> None:
    victim = world.serving(model, names.NAMESPACE)[0]
    name, before = victim["metadata"]["name"], restarts(victim)
    with clients.load(demo, model) as load:
        world.kill_pod(names.NAMESPACE, name)
        with progress.step("the killed worker serves again"):

            def is_back() -> bool:
                pods = world.serving(model, names.NAMESPACE)
                return len(pods) == 2 and all(pod["metadata"]["name"] != name or restarts(pod) > before for pod in pods)

            world.kube.wait("two workers serve, the killed one anew", is_back, within_s=300)
    progress.fact("workerKilled", load.summary)
    assert load.summary["failed"] <= LOST_AT_MOST, load.summary
    assert load.summary["longestGapSeconds"] < 15, load.summary


def test_a_node_cut_off_is_outlived_and_healed(
    world: World, clients: Clients, demo: Key, model: str, replicas: list[Manifest], progress: Progress
) -> None:
    own = world.target.own
    if own is None:
        pytest.skip("cuts a node off, which is done on the cluster made here alone")
    world.await_serving(model, 2, namespace=names.NAMESPACE)
    with clients.load(demo, model, callers=8) as load:
        time.sleep(4)  # until every caller has been answered
        own.cut(OTHER_NODE)
        try:
            with progress.step("the node is not ready"):
                path = f"/api/v1/nodes/{OTHER_NODE}"
                is_lost = lambda: condition(world.kube.get(path), "Ready")["status"] != "True"  # noqa: E731
                world.kube.wait("the node is not ready", is_lost, within_s=120)
            with progress.step("answered from what is left"):
                world.kube.wait(
                    "it is answered", lambda: clients.ask("openai", demo, model)["status"] == 200, within_s=30
                )
        finally:
            own.restore(OTHER_NODE)
        with progress.step("two replicas serve again"):
            world.await_serving(model, 2, namespace=names.NAMESPACE, within_s=400)
    progress.fact("nodeCutOff", load.summary)
    # A gateway and a worker were on it: what went to them at that moment is lost, and connections to it hang.
    assert load.summary["requests"] - load.summary["failed"] > 20, load.summary
    assert load.summary["longestGapSeconds"] < 20, load.summary
    asked = clients.ask("openai", demo, model)
    assert asked["status"] == 200, asked
