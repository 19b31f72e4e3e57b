"""How long it takes to plan one deployment, with 200 pools of 10,000 nodes in memory. Called by `run.py`; no cluster.

Nodes carry the labels that GPU feature discovery gives them and are read as the operator reads them. What is timed is
what a reconcile does for one deployment: on every pool that it lists, the pool's spec and all its nodes are judged and
the model is laid out (`plan`); with the revision's hash and snapshot on top it is `decide`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.wire.engine_spec import EngineType
from hanmaru_operator.observe import entry_of
from hanmaru_operator.plan.engine import EnginePlan, plan_engine
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.pools import PoolClaim, PoolNodes, assign_nodes
from hanmaru_operator.reconcile.model_facts import Known
from hanmaru_operator.reconcile.options import Asker, choose
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.types import NodeFacts, PoolName
from hanmaru_testing.planning import model

POOLS, NODES, DEPLOYMENTS = 200, 10_000, 1_000
ROUNDS = 3
"""Each deployment's best of them counts: others use the machine too."""
_MODELS = ("k-exaone", "k-exaone", "k-exaone-fp8", "k-exaone-2", "tiny")
_MEMORY = {"40Gi": 40_960, "80Gi": 81_920, "141Gi": 143_771}
_SETTINGS = RenderSettings(
    worker_images={EngineType.SGLANG: "worker:bench"}, operator_image="operator:bench", redis_url="redis://redis:6379/0"
)


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds, one a deployment."""

    assign_ms: float
    """All nodes given to all pools, once."""
    plan_ms: list[float]
    decide_ms: list[float]
    by_pools: dict[int, list[float]]
    """`plan_ms` of the deployments that list so many pools."""
    planned: int
    """Plans that fit; the others were refused with a reason, after as much work."""


@dataclass(frozen=True, slots=True)
class _Deployment:
    model: str
    spec: ModelDeploymentSpec


def measure(seed: int = 1) -> Timings:
    """Plan every deployment `ROUNDS` times."""
    chance = random.Random(seed)
    pools = {PoolName(f"pool-{index}"): _pool(index) for index in range(POOLS)}
    nodes = [_node(index) for index in range(NODES)]
    claims = [
        PoolClaim(name, name, float(index), spec.nodes.selector_terms)
        for index, (name, spec) in enumerate(pools.items())
    ]
    begun = time.perf_counter()
    assigned = assign_nodes(claims, nodes)
    assign_ms = (time.perf_counter() - begun) * 1e3
    assert sum(len(each.nodes) for each in assigned.values()) == NODES
    deployments = [_deployment(index, chance) for index in range(DEPLOYMENTS)]
    plan_ms = [float("inf")] * DEPLOYMENTS
    decide_ms = [float("inf")] * DEPLOYMENTS
    planned = 0
    for _ in range(ROUNDS):
        planned = 0
        for index, deployment in enumerate(deployments):
            begun = time.perf_counter()
            planned += _plan(deployment, pools, assigned)
            plan_ms[index] = min(plan_ms[index], (time.perf_counter() - begun) * 1e3)
            begun = time.perf_counter()
            _decide(index, deployment, pools, assigned)
            decide_ms[index] = min(decide_ms[index], (time.perf_counter() - begun) * 1e3)
    by_pools: dict[int, list[float]] = {}
    for deployment, took_ms in zip(deployments, plan_ms, strict=True):
        by_pools.setdefault(len(deployment.spec.pools), []).append(took_ms)
    return Timings(assign_ms, plan_ms, decide_ms, dict(sorted(by_pools.items())), planned)


def _plan(
    deployment: _Deployment, pools: dict[PoolName, AcceleratorPoolSpec], assigned: dict[PoolName, PoolNodes]
) -> int:
    facts, planned = model(deployment.model), 0
    for entry in deployment.spec.pools:
        name = PoolName(entry.name)
        pool = EnginePool.from_spec(name, pools[name])
        found = plan_engine(facts, pool, entry.serving or deployment.spec.serving, assigned[name].nodes)
        planned += isinstance(found, EnginePlan)
    return planned


def _decide(
    index: int,
    deployment: _Deployment,
    pools: dict[PoolName, AcceleratorPoolSpec],
    assigned: dict[PoolName, PoolNodes],
) -> None:
    asker = Asker(Owner("bench", f"model-{index}", f"uid-{index}"), deployment.spec, "", ())
    known = Known(model(deployment.model), "")
    for entry in deployment.spec.pools:
        name = PoolName(entry.name)
        nodes: Sequence[NodeFacts] = assigned[name].nodes
        choose(asker, entry, pools[name], nodes, known, {"bench": {}}, _SETTINGS)


def _pool(index: int) -> AcceleratorPoolSpec:
    memory = list(_MEMORY)[index % len(_MEMORY)]
    term = {"matchExpressions": [{"key": "bench.test/pool", "operator": "In", "values": [f"pool-{index}"]}]}
    return AcceleratorPoolSpec.model_validate(
        {
            "nodes": {"selectorTerms": [term]},
            "devices": {"type": "Resource", "resource": {"name": "nvidia.com/gpu"}, "memory": memory, "perNode": 8},
            "engine": {"type": "SGLang", "args": ["--log-level=warning"]},
            "capabilities": {
                "maxContextTokens": 262_144,
                "dtypes": ["bfloat16", "fp8-weight-only"],
                "features": ["mtp", "hybrid-kv", "expert-parallel"],
            },
        }
    )


def _deployment(index: int, chance: random.Random) -> _Deployment:
    spec: dict[str, Any] = {
        "source": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models"}},
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "route": {"name": f"model-{index}"},
        "pools": [{"name": f"pool-{place}"} for place in chance.sample(range(POOLS), 1 + index % 3)],
        "serving": chance.choice([{}, {"contextTokens": 65_536}, {"extraArgs": ["--log-requests"]}]),
        "replicas": chance.randint(1, 8),
    }
    return _Deployment(_MODELS[index % len(_MODELS)], ModelDeploymentSpec.model_validate(spec))


def _node(index: int) -> NodeFacts:
    """One in fifty is cut into slices, shares its devices or has lost one."""
    pool = index % POOLS
    labels = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": f"node-{index}",
        "node.kubernetes.io/instance-type": "gpu.8",
        "topology.kubernetes.io/region": "kr-1",
        "topology.kubernetes.io/zone": f"kr-1{'abc'[index % 3]}",
        "topology.kubernetes.io/rack": f"rack-{index // POOLS // 8}",
        "bench.test/pool": f"pool-{pool}",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": "8",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.family": "ampere",
        "nvidia.com/gpu.machine": "DGX",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.memory": str(list(_MEMORY.values())[pool % len(_MEMORY)]),
        "nvidia.com/gpu.compute.major": "8",
        "nvidia.com/gpu.compute.minor": "0",
        "nvidia.com/cuda.driver-version.full": "570.86.15",
        "nvidia.com/cuda.runtime-version.full": "12.8",
        "nvidia.com/mig.capable": "true",
        "nvidia.com/mig.strategy": "single",
        "nvidia.com/mig.config": "all-disabled",
        "nvidia.com/mig.config.state": "success",
        **{f"feature.node.kubernetes.io/cpu-cpuid.F{number}": "true" for number in range(20)},
    }
    devices = "8"
    if index % 50 == 0:
        fault = index // 50 % 3
        labels |= ({"nvidia.com/mig.config": "all-1g.10gb"}, {"nvidia.com/gpu.replicas": "4"}, {})[fault]
        devices = "7" if fault == 2 else devices
    raw = {
        "metadata": {
            "name": f"node-{index}",
            "uid": f"uid-{index}",
            "resourceVersion": str(index + 1),
            "creationTimestamp": "2026-11-22T00:00:00Z",
            "labels": labels,
        },
        "spec": {},
        "status": {
            "allocatable": {"cpu": "128", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": devices},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    return entry_of("Node", raw).node
