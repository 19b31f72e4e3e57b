"""What is ours stays as we render it, and what is others' stays as they left it; pods are not restarted for either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts.names import LABEL_DEPLOYMENT
from hanmaru_operator import kinds
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.operator_process import OperatorProcess
from hanmaru_testing.operator_world import World, condition

Manifest = dict[str, Any]
Edit = Callable[[Manifest], Manifest]
"""What a hand merges into an object, as it is."""


def another_image(group: Manifest) -> Manifest:
    [container] = group["spec"]["template"]["spec"]["containers"]
    return {"spec": {"template": {"spec": {"containers": [{**container, "image": "another:image", "env": []}]}}}}


def a_spoilt_answer(facts: Manifest) -> Manifest:
    return {"data": dict.fromkeys(facts["data"], "{}")}


EDITS: dict[str, tuple[str, Edit]] = {
    "a-service-selects-others": (kinds.SERVICES.kind, lambda _: {"spec": {"selector": {"app": "another"}}}),
    "a-policy-lets-everybody-in": (kinds.NETWORK_POLICIES.kind, lambda _: {"spec": {"ingress": [{}]}}),
    "a-budget-lets-pods-be-evicted": (kinds.POD_DISRUPTION_BUDGETS.kind, lambda _: {"spec": {"maxUnavailable": 1}}),
    "an-account-mounts-its-token": (kinds.SERVICE_ACCOUNTS.kind, lambda _: {"automountServiceAccountToken": True}),
    "a-template-has-another-image": (kinds.STATEFUL_SETS.kind, another_image),
    "facts-are-spoilt": (kinds.CONFIG_MAPS.kind, a_spoilt_answer),
}


@pytest.fixture(scope="module")
def running(control_plane: ControlPlane, operator: OperatorProcess) -> Iterator[World]:
    """A deployment of one replica over two nodes, ready; every test leaves it so."""
    namespace = "test-ownership"
    control_plane.create_namespace(namespace)
    with Nodes(control_plane.api) as nodes, World(control_plane.api, namespace, nodes) as world:
        world.add_nodes("small", 2)
        world.deploy("k-exaone", [world.pool("small", memory="40Gi")])
        world.wait_ready("k-exaone")
        yield world
    control_plane.api.delete(f"/api/v1/namespaces/{namespace}")


def objects(world: World, kind: str) -> list[Manifest]:
    """What we made of a kind for the deployment, by name."""
    path = kinds.api_of(kind).path(world.namespace)
    found = world.api.get(f"{path}?labelSelector={LABEL_DEPLOYMENT}=k-exaone")["items"]
    # The StatefulSet controller keeps revisions of its own, with the labels of our template.
    ours = [each for each in found if each["metadata"]["ownerReferences"][0]["kind"] == "ModelDeployment"]
    return sorted(ours, key=lambda each: str(each["metadata"]["name"]))


def content(found: Manifest) -> Manifest:
    """What we render of an object."""
    kept = {name: value for name, value in found.items() if name not in ("apiVersion", "kind", "metadata", "status")}
    metadata = {name: found["metadata"].get(name) for name in ("name", "labels", "ownerReferences")}
    return {**kept, "metadata": metadata}


def pods(world: World) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods("k-exaone")}


@pytest.mark.parametrize(("kind", "edit"), list(EDITS.values()), ids=list(EDITS))
def test_a_hands_edit_of_a_child_is_taken_back(running: World, kind: str, edit: Edit) -> None:
    found, kept = objects(running, kind), pods(running)
    before = [content(each) for each in found]
    path = kinds.api_of(kind).path(running.namespace, found[0]["metadata"]["name"])
    assert content(running.api.patch(path, edit(found[0]))) != before[0]
    running.wait("as it was", lambda: [content(each) for each in objects(running, kind)] == before, within_s=10)
    running.wait_ready("k-exaone")
    assert pods(running) == kept


def test_labels_that_a_hand_took_are_put_back(running: World) -> None:
    """Without them the watch does not show the object, as if it were gone."""
    kept = pods(running)
    [service] = objects(running, kinds.SERVICES.kind)
    path = kinds.SERVICES.path(running.namespace, service["metadata"]["name"])
    running.api.patch(path, {"metadata": {"labels": None}})
    running.wait("as it was", lambda: content(running.api.get(path)) == content(service))
    assert running.api.get(path)["metadata"]["uid"] == service["metadata"]["uid"]
    assert pods(running) == kept


@pytest.mark.parametrize(
    "kind",
    [
        kinds.SERVICES.kind,
        kinds.NETWORK_POLICIES.kind,
        kinds.POD_DISRUPTION_BUDGETS.kind,
        kinds.SERVICE_ACCOUNTS.kind,
        kinds.CONFIG_MAPS.kind,
        kinds.CONTROLLER_REVISIONS.kind,
    ],
)
def test_a_deleted_child_is_made_again(running: World, kind: str) -> None:
    before, kept = objects(running, kind), pods(running)
    assert before
    for each in before:
        running.api.delete(kinds.api_of(kind).path(running.namespace, each["metadata"]["name"]))
    uids = {each["metadata"]["uid"] for each in before}

    def is_back() -> bool:
        now = objects(running, kind)
        is_same = [content(each) for each in now] == [content(each) for each in before]
        return is_same and not uids & {each["metadata"]["uid"] for each in now}

    running.wait("there again", is_back, within_s=10)
    running.wait_ready("k-exaone")
    assert pods(running) == kept


def test_a_deleted_key_is_there_again_before_its_group_starts_anew(running: World) -> None:
    """Secrets of users' namespaces are not watched, so it is missed at the latest when pods are to mount it."""
    [group] = running.groups("k-exaone")
    path = kinds.SECRETS.path(running.namespace, group["metadata"]["name"])
    before = running.api.get(path)["data"]
    running.api.delete(path)
    first, _ = running.pods("k-exaone")
    running.delete_pod(first["metadata"]["name"])
    running.wait("its key is back", lambda: running.api.get(path)["data"] == before)
    running.wait_ready("k-exaone")


def test_a_group_that_a_hand_shrank_is_whole_again(running: World) -> None:
    """It has lost a rank, so it starts anew, under the same name."""
    [group] = running.groups("k-exaone")
    running.api.patch(kinds.STATEFUL_SETS.path(running.namespace, group["metadata"]["name"]), {"spec": {"replicas": 1}})
    running.wait("two are wanted", lambda: running.groups("k-exaone")[0]["spec"]["replicas"] == 2, within_s=10)
    running.wait("two are there", lambda: len(running.pods("k-exaone")) == 2)
    running.wait_ready("k-exaone")
    assert running.replicas("k-exaone") == {group["metadata"]["name"]}


def test_a_deleted_group_is_replaced_under_another_name(running: World) -> None:
    old = running.replicas("k-exaone")
    [name] = old
    running.api.delete(kinds.STATEFUL_SETS.path(running.namespace, name))
    running.wait("another one", lambda: (found := running.replicas("k-exaone")) and not found & old)
    running.wait_ready("k-exaone")
    successor = running.replicas("k-exaone")
    assert len(successor) == 1
    running.wait(
        "what belonged to the old one is gone",
        lambda: all(
            {each["metadata"]["name"] for each in objects(running, kind)} == successor
            for kind in (kinds.SERVICES.kind, kinds.NETWORK_POLICIES.kind, kinds.SERVICE_ACCOUNTS.kind)
        ),
    )


def test_an_object_of_somebody_else_with_our_name_is_reported_and_stays(world: World, kubectl: Kubectl) -> None:
    def events() -> str:
        return kubectl("-n", world.namespace, "describe", "md", "k-exaone").partition("Events:")[2]

    world.add_nodes("small", 2)
    theirs = {"metadata": {"name": "k-exaone-model-facts"}, "data": {"theirs": "yes"}}
    made = world.api.create(kinds.CONFIG_MAPS.path(world.namespace), theirs)
    world.deploy("k-exaone", [world.pool("small")])
    degraded = world.wait("said", lambda: world.condition("k-exaone", "Degraded"))
    assert (degraded["status"], degraded["reason"]) == ("True", "ForeignObject")
    assert f"ConfigMap {world.namespace}/k-exaone-model-facts" in degraded["message"]
    world.wait("an event", lambda: "ForeignObject" in events())
    assert "rename or delete it" in events()
    path = kinds.CONFIG_MAPS.path(world.namespace, "k-exaone-model-facts")
    assert world.api.get(path)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert world.groups("k-exaone") == []
    world.api.delete(path)
    world.patch("k-exaone", {"rollout": {"progressDeadlineSeconds": 500}})  # else it is looked for after 30 s
    world.wait_ready("k-exaone")
    assert world.condition("k-exaone", "Degraded") == {}


def test_a_node_of_two_pools_belongs_to_the_older(world: World) -> None:
    [node] = world.add_nodes("small", 1)
    old = world.pool("small")
    time.sleep(1.1)  # an API server's times are whole seconds
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    young = world.pool("young", nodes={"selectorTerms": [term]})

    def pool(name: str) -> Manifest:
        return world.api.get(kinds.ACCELERATOR_POOLS.path(name=name))

    overlap = world.wait("said", lambda: condition(pool(young), "PoolOverlap"))
    assert (overlap["status"], overlap["reason"]) == ("True", "OlderPoolHasNodes")
    assert old in overlap["message"]
    assert node in overlap["message"]
    assert condition(pool(old), "PoolOverlap") == {}
    assert (pool(old)["status"]["nodes"], pool(young)["status"]["nodes"]) == (1, 0)
    world.api.delete(kinds.ACCELERATOR_POOLS.path(name=old))
    world.wait("the younger has it", lambda: pool(young)["status"]["nodes"] == 1)
    assert condition(pool(young), "PoolOverlap") == {}
