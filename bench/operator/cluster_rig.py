"""A real control plane with nodes, pools and deployments on it, filled quickly. Called by `reconciling.py`.

Objects are created eight at a time through one connection pool. What the operator's model-facts pods would have found
is put into each deployment's ConfigMap beforehand, as the operator would have written it, so that 1,000 pods which
read one file each are not part of the measurement.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import httpx2
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, VERSION
from hanmaru_contracts.crd.v1alpha1.model_deployment import Source
from hanmaru_contracts.names import FIELD_MANAGER
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.render.facts import facts_config_map
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.revision import source_hash
from hanmaru_testing.planning import model

NAMESPACE, SYSTEM = "bench", "hanmaru-system"
OURS = f"/apis/{GROUP}/{VERSION}"
DEPLOYMENTS = f"{OURS}/namespaces/{NAMESPACE}/modeldeployments"
CLAIM = "tiny"
GPU = "nvidia.com/gpu"
NODES_A_POOL = 50
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    nodes: int = 500
    deployments: int = 1_000
    """Idle ones, one replica each on one device."""
    active: int = 40
    """More of the same, which are changed in turn."""
    changes: int = 200


def name_of(number: int) -> str:
    """A deployment."""
    return f"model-{number}"


def add_ground(plane: ControlPlane, nodes: Nodes, size: Size) -> int:
    """Namespaces, nodes, pools and the claim that every deployment mounts; the number of pools."""
    for namespace in (SYSTEM, NAMESPACE):
        plane.create_namespace(namespace)
    pools = max(1, size.nodes // NODES_A_POOL)
    for pool in range(pools):
        labels = {"bench.test/pool": f"pool-{pool}", "topology.kubernetes.io/rack": f"rack-{pool}"}
        nodes.add(size.nodes // pools, labels=labels, capacity={GPU: "8"})
        plane.api.create(f"{OURS}/acceleratorpools", _pool(f"pool-{pool}"))
    shared: dict[str, Any] = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    storage = {"storage": "1Gi"}
    volume = {
        "capacity": storage,
        "hostPath": {"path": "/nowhere"},
        "claimRef": {"namespace": NAMESPACE, "name": CLAIM},
    }
    claim = {"resources": {"requests": storage}, "volumeName": CLAIM}
    plane.api.create("/api/v1/persistentvolumes", {"metadata": {"name": CLAIM}, "spec": shared | volume})
    claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
    plane.api.create(claims, {"metadata": {"name": CLAIM}, "spec": shared | claim})
    return pools


def add_deployments(plane: ControlPlane, size: Size, pools: int) -> None:
    """All of them, with their models' facts."""
    asyncio.run(_add_deployments(plane, size.deployments + size.active, pools))


async def _add_deployments(plane: ControlPlane, count: int, pools: int) -> None:
    source = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": CLAIM}}
    found = {source_hash(Source.model_validate(source)): {"facts": json.loads(model("tiny").to_json()), "revision": ""}}
    async with open_http(read_connection({"KUBECONFIG": str(plane.kubeconfig)})) as http:

        async def add(number: int) -> None:
            made = await _create(http, DEPLOYMENTS, _deployment(number, source, f"pool-{number % pools}"))
            owner = Owner(NAMESPACE, name_of(number), made["metadata"]["uid"])
            manifest = facts_config_map(owner, found)
            path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
            await _create(http, f"{path}?fieldManager={FIELD_MANAGER}", manifest)

        await _several(add(number) for number in range(count))


async def _several(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    free = asyncio.Semaphore(_AT_ONCE)

    async def run(job: Coroutine[Any, Any, None]) -> None:
        async with free:
            await job

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(run(job))


async def _create(http: httpx2.AsyncClient, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(path, json=manifest)
    answer.raise_for_status()
    made: dict[str, Any] = answer.json()
    return made


def _pool(name: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": "bench.test/pool", "operator": "In", "values": [name]}]}
    spec = {
        "nodes": {"selectorTerms": [term]},
        "devices": {"type": "Resource", "resource": {"name": GPU}, "memory": "80Gi", "perNode": 8},
        "engine": {"type": "SGLang"},
        "capabilities": {
            "maxContextTokens": 262_144,
            "dtypes": ["bfloat16"],
            "features": ["mtp", "hybrid-kv", "expert-parallel"],
        },
        "topology": {"domainKey": "topology.kubernetes.io/rack"},
    }
    return {"apiVersion": API_VERSION, "kind": "AcceleratorPool", "metadata": {"name": name}, "spec": spec}


def _deployment(number: int, source: dict[str, Any], pool: str) -> dict[str, Any]:
    spec = {
        "source": source,
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "route": {"name": name_of(number)},
        "pools": [{"name": pool}],
        "replicas": 1,
        "lifecycle": {"drainSeconds": 1},
    }
    return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": name_of(number)}, "spec": spec}
