"""Builders of what the operator sees: nodes, pods, pools, replicas, deployments. Every value has a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.names import GATE_GROUP, ReplicaId
from hanmaru_operator.types import (
    DeploymentFacts,
    LeaseFacts,
    NodeFacts,
    NodeName,
    NodeRoom,
    PodFacts,
    PoolFacts,
    PoolName,
    PoolOption,
    ReplicaFacts,
    Revision,
)

GPU = "nvidia.com/gpu"
RACK = "topology.kubernetes.io/rack"
NOW = 1_800_000_000.0
GATED = (GATE_GROUP,)


def node(name: str, devices: float = 8, rack: str = "", **more: Any) -> NodeFacts:
    labels = {RACK: rack} if rack else {}
    facts: dict[str, Any] = {"labels": labels, "is_ready": True, "is_schedulable": True} | more
    return NodeFacts(NodeName(name), allocatable={GPU: float(devices)} | facts.pop("allocatable", {}), **facts)


def room_of(name: str, free: float = 8, rack: str = "", devices: float = 8, **more: Any) -> NodeRoom:
    facts = node(name, devices, rack, **more)
    return NodeRoom(facts, {**facts.allocatable, GPU: float(free)})


def pod(name: str = "r-0", **more: Any) -> PodFacts:
    facts: dict[str, Any] = {
        "namespace": "ns",
        "uid": f"uid-{name}",
        "node": None,
        "planned_node": None,
        "gates": GATED,
        "requests": {GPU: 8.0},
        "is_ready": False,
        "is_terminating": False,
        "has_ended": False,
        "created_at": NOW - 1000,
        "gate_lifted_at": None,
        "replica": None,
        "ordinal": None,
    }
    return PodFacts(name=name, **{**facts, **more})


def bound_pod(name: str = "r-0", on: str = "n0", **more: Any) -> PodFacts:
    """One that runs and is ready."""
    facts: dict[str, Any] = {"node": NodeName(on), "gates": (), "is_ready": True, "gate_lifted_at": NOW - 990}
    return pod(name, **{**facts, **more})


def replica(name: str = "r", *, on: Sequence[str] | None = ("n0",), **more: Any) -> ReplicaFacts:
    """A replica that serves on the nodes `on`; with None, it waits with one gated pod."""
    pods = (pod(f"{name}-0"),) if on is None else tuple(bound_pod(f"{name}-{i}", n) for i, n in enumerate(on))
    facts: dict[str, Any] = {
        "namespace": "ns",
        "deployment": "m",
        "uid": f"uid-{name}",
        "pool": PoolName("a"),
        "revision": Revision("1"),
        "created_at": NOW - 1000,
        "is_terminating": False,
        "pods": pods,
        "lease": None if on is None else LeaseFacts(is_alive=True),
    } | more
    return ReplicaFacts(id=ReplicaId(name), size=facts.pop("size", len(facts["pods"])), **facts)


def option(pool: str = "a", revision: str | None = "1", **more: Any) -> PoolOption:
    facts: dict[str, Any] = {"min_replicas": 0, "max_replicas": None, "resource": GPU, "pod_requests": {GPU: 8.0}}
    return PoolOption(PoolName(pool), revision=Revision(revision) if revision else None, **{**facts, **more})


def deployment_spec(replicas: int = 1, pools: Sequence[str] = ("a",), **more: Any) -> ModelDeploymentSpec:
    """`more`: further blocks, as in YAML."""
    return ModelDeploymentSpec.model_validate(
        {
            "source": {"type": "HuggingFace", "huggingFace": {"repo": "org/model"}},
            "licence": {"accepted": "some"},
            "route": {"name": "model"},
            "pools": [{"name": name} for name in pools],
            "replicas": replicas,
            **more,
        }
    )


def deployment(
    *replicas: ReplicaFacts,
    options: Sequence[PoolOption] = (option(),),
    want: int | None = None,
    spec: Mapping[str, Any] | None = None,
    **more: Any,
) -> DeploymentFacts:
    """`want`: spec.replicas, by default as many as there are. `spec`: further blocks of the spec."""
    target = len(replicas) if want is None else want
    facts: dict[str, Any] = {
        "namespace": "ns",
        "name": "m",
        "uid": "uid-m",
        "generation": 1,
        "spec": deployment_spec(target, [each.pool for each in options], **(spec or {})),
        "may_run": True,
        "unhealthy_nodes": frozenset(),
        "cordoned_nodes": frozenset(),
        "preferred_free_since": None,
        "now": NOW,
    }
    return DeploymentFacts(options=tuple(options), replicas=replicas, **{**facts, **more})


def pool_spec(domain_key: str = "", per_node: int = 8, **more: Any) -> AcceleratorPoolSpec:
    """`more`: further blocks, as in YAML."""
    return AcceleratorPoolSpec.model_validate(
        {
            "nodes": {"selectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]},
            "devices": {"resource": {"name": GPU}, "memory": "80Gi", "perNode": per_node},
            "topology": {"domainKey": domain_key},
            **more,
        }
    )


def pool(*rooms: NodeRoom, name: str = "a", domain_key: str = "", **more: Any) -> PoolFacts:
    facts: dict[str, Any] = {"uid": f"uid-{name}", "generation": 1, "created_at": NOW, "spec": pool_spec(domain_key)}
    return PoolFacts(name=PoolName(name), nodes=rooms, **{**facts, **more})
