"""Deployments become groups of pods on nodes that fit, whole or not at all."""

from __future__ import annotations

from typing import Any

from hanmaru_contracts.names import GATE_GROUP
from hanmaru_testing.operator_world import GPU, RACK, Manifest, World
from hanmaru_testing.pod_history import PodHistory

FOREIGN_GATE = "example.com/quota"
NOT_SCHEDULED_BY_ANYBODY = "played-by-the-test"


def test_k_exaone_runs_on_two_nodes_of_one_rack(world: World) -> None:
    world.add_nodes("small", 1, rack="r1")
    world.add_nodes("small", 2, rack="r2")
    world.add_nodes("other", 1, rack="r1")
    small, other = world.pool("small", memory="40Gi"), world.pool("other", memory="16Gi")
    world.deploy("k-exaone", [other, small])
    status = world.wait_ready("k-exaone")
    pods = world.pods("k-exaone")
    assert len(pods) == 2
    assert racks(world, pods) == {"r2"}
    assert all(pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "8" for pod in pods)
    plans = {plan["pool"]: plan for plan in status["plan"]}
    assert not plans[other]["fits"]
    assert (plans[small]["nodes"], plans[small]["devices"]) == (2, 16)


def test_no_pod_is_bound_until_the_whole_group_fits_and_the_status_says_what_is_missing(world: World) -> None:
    world.add_nodes("small", 1, rack="r1")
    world.add_nodes("small", 1, rack="r2")
    small, none = world.pool("small", memory="40Gi"), world.pool("none", memory="40Gi")
    history = PodHistory(world, "k-exaone", group_size=2)
    world.deploy("k-exaone", [small, none])
    why = world.wait("it says why", lambda: world.condition("k-exaone", "Unschedulable"))
    assert why["reason"] == "DevicesMissing"
    assert f"needs 2 x 8 {GPU} in one {RACK}" in why["message"]
    assert f"pool {small}: 8 missing, best in r1" in why["message"]
    assert f"pool {none}: 16 missing" in why["message"]
    assert world.condition("k-exaone", "Progressing")["reason"] == "WaitingForDevices"
    world.wait("both pods are there", lambda: len(world.pods("k-exaone")) == 2)
    assert all(moment.holding == 0 for moment in history.moments())

    world.add_nodes("small", 1, rack="r2")
    world.wait_ready("k-exaone")
    assert racks(world, world.pods("k-exaone")) == {"r2"}
    assert not world.condition("k-exaone", "Unschedulable")


def test_an_author_is_told_which_fields_of_the_template_do_not_count(world: World) -> None:
    world.add_nodes("roomy", 1)
    template = {"spec": {"hostNetwork": True, "containers": [{"name": "engine", "image": "mine"}]}}
    world.deploy("k-exaone", [world.pool("roomy")], serving={"podTemplate": template})
    world.wait_ready("k-exaone")
    [pod] = world.pods("k-exaone")
    assert not pod["spec"].get("hostNetwork")
    said = world.condition("k-exaone", "FieldsIgnored")
    assert (said["status"], said["reason"]) == ("True", "NotForAuthors")
    assert said["message"].endswith(": spec.hostNetwork, spec.containers[engine].image")
    world.patch("k-exaone", {"serving": None})
    world.wait("it is said no more", lambda: not world.condition("k-exaone", "FieldsIgnored"))


def test_the_next_pool_serves_while_the_first_is_full_and_gives_the_replica_back(world: World) -> None:
    [first_node], [second_node] = world.add_nodes("first", 1), world.add_nodes("second", 1)
    first, second = world.pool("first"), world.pool("second")
    foreign = world.occupy(first_node)
    world.wait("the first pool is full", lambda: world.pool_status(first)["devices"]["used"] == 8)
    world.deploy("k-exaone", [first, second])
    world.wait_ready("k-exaone")
    assert nodes_of(world.pods("k-exaone")) == {second_node}
    [before] = world.replicas("k-exaone")

    history = PodHistory(world, "k-exaone")
    world.delete_pod(foreign)
    world.wait("it runs on the first choice alone", lambda: nodes_of(world.pods("k-exaone")) == {first_node})
    world.wait_ready("k-exaone")
    assert world.replicas("k-exaone").isdisjoint({before})
    assert min(moment.ready for moment in history.moments()) == 1


def test_a_replica_that_waits_falls_back_to_a_pool_that_gets_room(world: World) -> None:
    [first_node], [second_node] = world.add_nodes("first", 1), world.add_nodes("second", 1)
    first, second = world.pool("first"), world.pool("second")
    foreign = {world.occupy(first_node): first, world.occupy(second_node): second}
    for pool in foreign.values():
        world.wait("the pool is full", lambda pool=pool: world.pool_status(pool)["devices"]["used"] == 8)
    world.deploy("k-exaone", [first, second])
    why = world.wait("it waits", lambda: world.condition("k-exaone", "Unschedulable"))
    assert f"pool {first}: 8 missing" in why["message"]
    assert f"pool {second}: 8 missing" in why["message"]

    [in_the_way] = [pod for pod, pool in foreign.items() if pool == second]
    world.delete_pod(in_the_way)
    world.wait_ready("k-exaone")
    assert nodes_of(world.pods("k-exaone")) == {second_node}


def test_a_gate_of_somebody_else_is_waited_for_and_never_removed(world: World) -> None:
    world.add_nodes("small", 3)
    pool = world.pool("small", memory="40Gi", podTemplate={"spec": {"schedulingGates": [{"name": FOREIGN_GATE}]}})
    history = PodHistory(world, "k-exaone", group_size=2)
    world.deploy("k-exaone", [pool])
    first, second = world.wait("both pods are there", lambda: two(world.pods("k-exaone")))
    # A younger group whose gate its owner takes away is placed past it: so the pool was looked at meanwhile.
    world.deploy("tiny", [pool], claim="tiny", replicas=1)
    [younger] = world.wait("the younger pod is there", lambda: world.pods("tiny"))
    open_foreign_gate(world, younger)
    open_foreign_gate(world, first)
    world.wait_ready("tiny")
    assert gates(world, first) == [GATE_GROUP]
    assert sorted(gates(world, second)) == sorted([GATE_GROUP, FOREIGN_GATE])

    open_foreign_gate(world, second)
    world.wait_ready("k-exaone")
    lifted_early = [
        pod["metadata"]["name"]
        for pod in history.versions()
        if [gate["name"] for gate in pod["spec"].get("schedulingGates", ())] == [FOREIGN_GATE]
    ]
    assert not lifted_early


def test_a_group_whose_devices_somebody_takes_after_the_gate_returns_whole(world: World) -> None:
    world.add_nodes("small", 2)
    pool = world.pool(
        "small",
        memory="40Gi",
        scheduling={"bindTimeoutSeconds": 5, "schedulerName": NOT_SCHEDULED_BY_ANYBODY},
    )
    world.deploy("k-exaone", [pool])
    first, second = world.wait("both are free to be bound", lambda: free_to_be_bound(world, "k-exaone"))
    foreign = world.occupy(planned_node(second))
    world.bind(first, planned_node(first))
    gone = {pod["metadata"]["uid"] for pod in (first, second)}

    def are_back() -> list[Manifest]:
        pods = world.pods("k-exaone")
        are_new = len(pods) == 2 and not gone & {pod["metadata"]["uid"] for pod in pods}
        return pods if are_new else []

    returned = world.wait("both are made anew", are_back)
    history = PodHistory(world, "k-exaone", group_size=2)
    assert all([gate["name"] for gate in pod["spec"]["schedulingGates"]] == [GATE_GROUP] for pod in returned)
    why = world.wait("it says what is missing", lambda: world.condition("k-exaone", "Unschedulable"))
    assert f"pool {pool}: 8 missing" in why["message"]
    assert all(moment.holding == 0 for moment in history.moments())

    world.delete_pod(foreign)
    for pod in world.wait("both are free to be bound", lambda: free_to_be_bound(world, "k-exaone")):
        world.bind(pod, planned_node(pod))
    world.wait_ready("k-exaone")


def test_a_group_waits_for_an_older_one_that_could_fit(world: World) -> None:
    one, _ = world.add_nodes("small", 2)
    pool = world.pool("small", memory="40Gi")
    foreign = world.occupy(one)
    world.wait("the pool is half full", lambda: world.pool_status(pool)["devices"]["used"] == 8)
    world.deploy("older", [pool])
    world.wait("the older waits", lambda: world.condition("older", "Unschedulable") and world.pods("older"))
    [older] = world.replicas("older")
    history = PodHistory(world, "younger")
    world.deploy("younger", [pool], claim="tiny")
    why = world.wait("the younger waits", lambda: world.condition("younger", "Unschedulable"))
    assert f"waits behind {world.namespace}/{older}, which is older" in why["message"]

    world.delete_pod(foreign)
    world.wait_ready("older")
    assert all(moment.holding == 0 for moment in history.moments())
    world.add_nodes("small", 1)
    world.wait_ready("younger")


def racks(world: World, pods: list[Manifest]) -> set[str]:
    return {world.api.get(f"/api/v1/nodes/{node}")["metadata"]["labels"][RACK] for node in nodes_of(pods)}


def nodes_of(pods: list[Manifest]) -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in pods}


def two(pods: list[Manifest]) -> list[Manifest]:
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"])) if len(pods) == 2 else []


def gates(world: World, pod: Manifest) -> list[str]:
    now = world.api.get(world.pod_path(pod["metadata"]["name"]))
    return [gate["name"] for gate in now["spec"].get("schedulingGates", ())]


def open_foreign_gate(world: World, pod: Manifest) -> None:
    """As its owner does, who keeps the gates of others."""
    kept = [{"name": gate} for gate in gates(world, pod) if gate != FOREIGN_GATE]
    world.api.patch(world.pod_path(pod["metadata"]["name"]), {"spec": {"schedulingGates": kept}})


def free_to_be_bound(world: World, name: str) -> list[Manifest]:
    pods = two(world.pods(name))
    return pods if not any(pod["spec"].get("schedulingGates") or is_ending(pod) for pod in pods) else []


def is_ending(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def planned_node(pod: Manifest) -> str:
    """Where its affinity has been narrowed to."""
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    fields: list[Any] = [term["matchFields"] for term in affinity["nodeSelectorTerms"]]
    [[field]] = fields
    assert field["key"] == "metadata.name"
    [node] = field["values"]
    return str(node)
