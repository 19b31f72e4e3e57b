"""Who is looked at again when something changes, and that heartbeats wake nobody."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_POOL, ReplicaId
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.triggers import TENANTS_KEY, Call, Triggers
from hanmaru_operator.types import ObjectKey
from hanmaru_testing.operator_facts import bound_pod, node

VERSIONS = iter(range(1, 100_000))


class Cluster:
    """A store with its triggers; says who is called by each change."""

    def __init__(self) -> None:
        self.called: set[Call] = set()
        self.store = Store(self._changed)
        self.triggers = Triggers(self.store)

    def _changed(self, change: Change) -> None:
        self.called = self.triggers.calls(change)

    def put(self, entry: Entry) -> set[str]:
        self.called = set()
        self.store.put(entry)
        return {str_of(call.key) for call in self.called}

    def remove(self, entry: Entry) -> set[str]:
        self.called = set()
        self.store.remove(entry.key, entry.uid, next(VERSIONS))
        return {str_of(call.key) for call in self.called}


def str_of(key: ObjectKey) -> str:
    return "tenants" if key == TENANTS_KEY else f"{key.kind[0]}:{key.namespace}/{key.name}".replace(":/", ":")


def entry(kind: str, name: str, *, namespace: str = "ns", spec: Any = None, **more: Any) -> Entry:
    made = Entry(
        key=ObjectKey(kind, namespace, name),
        uid=f"{kind}-{name}",
        resource_version=next(VERSIONS),
        generation=1,
        created_at=0,
        is_terminating=False,
        owner_uid="",
        labels={},
        spec_json=json.dumps(spec).encode() if spec is not None else b"",
    )
    return replace(made, **more)


def deployment(name: str, pools: list[str], route: str = "r", **more: Any) -> Entry:
    spec = {"route": {"name": route}, "pools": [{"name": p} for p in pools], **more.pop("spec", {})}
    return entry("ModelDeployment", name, spec=spec, **more)


def pool(name: str, label: str) -> Entry:
    term = {"matchExpressions": [{"key": "pool", "operator": "In", "values": [label]}]}
    spec = {
        "nodes": {"selectorTerms": [term]},
        "devices": {"type": "Resource", "resource": {"name": "nvidia.com/gpu"}, "memory": "80Gi", "perNode": 8},
        "capabilities": {"maxContextTokens": 1, "dtypes": ["bfloat16"]},
    }
    return entry("AcceleratorPool", name, namespace="", spec=spec)


def node_entry(name: str, label: str, **more: Any) -> Entry:
    return entry("Node", name, namespace="", facts=node(name, labels={"pool": label}, **more))


def pod_entry(name: str, on: str = "n", labels: dict[str, str] | None = None, **more: Any) -> Entry:
    return entry("Pod", name, facts=bound_pod(name, on, **more), labels=labels or {})


OUR_POD = {LABEL_DEPLOYMENT: "m", LABEL_POOL: "a"}


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    for one in (pool("a", "A"), pool("b", "B"), node_entry("n", "A"), node_entry("m", "B")):
        made.put(one)
    made.put(deployment("m", ["a", "b"]))
    made.put(deployment("sharer", ["b"]))
    made.put(deployment("other", ["b"], route="q", key=ObjectKey("ModelDeployment", "else", "other")))
    return made


def test_a_deployment_calls_itself_the_tenants_and_who_shares_its_route(cluster: Cluster) -> None:
    changed = deployment("m", ["a"], route="q", generation=2)
    assert cluster.put(changed) == {"M:ns/m", "M:ns/sharer", "M:else/other", "tenants"}


@pytest.mark.parametrize("block", ["replicas", "rollout", "serving"])
def test_what_concerns_a_deployment_alone_calls_it_alone(cluster: Cluster, block: str) -> None:
    assert cluster.put(deployment("m", ["a", "b"], spec={block: {"x": 1}}, generation=2)) == {"M:ns/m"}


def test_a_deployment_that_goes_frees_its_route(cluster: Cluster) -> None:
    gone = deployment("m", ["a", "b"])
    assert cluster.remove(gone) >= {"M:ns/sharer", "tenants"}
    assert cluster.triggers.users_of("a") == set()


def test_a_pool_calls_itself_and_its_users(cluster: Cluster) -> None:
    changed = replace(pool("a", "A"), generation=2)
    assert cluster.put(changed) == {"A:a", "M:ns/m"}


def test_a_pool_with_other_nodes_calls_the_other_pools_too_without_haste(cluster: Cluster) -> None:
    assert cluster.put(pool("a", "B")) == {"A:a", "A:b", "M:ns/m"}
    assert Call(ObjectKey("AcceleratorPool", "", "b"), is_direct=False) in cluster.called


def test_a_heartbeat_calls_nobody(cluster: Cluster) -> None:
    assert cluster.put(node_entry("n", "A")) == set()


def test_a_node_calls_its_pools_and_the_deployments_on_it(cluster: Cluster) -> None:
    cluster.put(pod_entry("m-0", labels=OUR_POD, replica=ReplicaId("m-x")))
    assert cluster.put(node_entry("n", "A", is_ready=False)) == {"A:a", "M:ns/m"}
    assert cluster.put(node_entry("n", "B")) == {"A:a", "A:b", "M:ns/m"}
    assert cluster.remove(node_entry("n", "B")) == {"A:b", "M:ns/m"}


def test_anybodys_pod_calls_the_pool_of_its_node(cluster: Cluster) -> None:
    assert cluster.put(pod_entry("web")) == {"A:a"}
    assert cluster.put(pod_entry("web", on="m")) == {"A:a", "A:b"}
    assert cluster.put(pod_entry("web", on="m")) == set()
    assert cluster.remove(pod_entry("web", on="m")) == {"A:b"}
    assert cluster.put(pod_entry("far", on="unknown")) == set()


def test_our_pod_calls_its_deployment_and_its_pool(cluster: Cluster) -> None:
    gated = pod_entry("m-0", labels=OUR_POD, node=None)
    assert cluster.put(gated) == {"M:ns/m", "A:a"}


def test_a_child_calls_its_deployment_even_when_a_hand_took_its_label(cluster: Cluster) -> None:
    assert cluster.put(entry("Service", "m-x", labels=OUR_POD, digest=b"1")) == {"M:ns/m"}
    assert cluster.put(entry("Service", "m-x", labels={}, digest=b"2")) == {"M:ns/m"}


@pytest.mark.parametrize("kind", ["Tenant", "Secret"])
def test_tenants_and_their_secrets_call_the_tenants(cluster: Cluster, kind: str) -> None:
    assert cluster.put(entry(kind, "x", data_json=b"{}")) == {"tenants"}


def test_a_namespace_calls_the_tenants_and_its_deployments(cluster: Cluster) -> None:
    assert cluster.put(entry("Namespace", "ns", namespace="", labels={"a": "b"})) == {
        "tenants",
        "M:ns/m",
        "M:ns/sharer",
    }


def test_a_spec_that_cannot_be_read_stops_nobody(cluster: Cluster) -> None:
    assert cluster.put(entry("AcceleratorPool", "a", namespace="", spec={"new": "shape"})) >= {"A:a"}
    assert cluster.put(entry("ModelDeployment", "m", spec={})) >= {"M:ns/m"}
    assert cluster.triggers.pools_of(node_entry("n", "A")) == frozenset()
