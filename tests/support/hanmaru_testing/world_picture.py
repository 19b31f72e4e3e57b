"""A picture of everything that the operator made of one world, in which names, uids and times do not show.

Two worlds of the same suffix, one after the other, look the same exactly when their ends are equal. Replicas of one
deployment are counted, not told apart.
"""

from __future__ import annotations

import json
from typing import Any

from hanmaru_contracts import redis_keys
from hanmaru_contracts.crd.kinds import GROUP, VERSION
from hanmaru_contracts.names import (
    LABEL_DEPLOYMENT,
    LABEL_MANAGED_BY,
    LABEL_POOL,
    LABEL_REPLICA,
    LABEL_REVISION,
    LABEL_WRITTEN,
    MANAGED_BY,
)
from redis import Redis

from hanmaru_testing.operator_world import World, condition

Picture = dict[str, list[str]]
"""By kind, each object as a line of JSON, sorted."""
_OURS = f"/apis/{GROUP}/{VERSION}"
_KINDS = {
    "statefulsets": "/apis/apps/v1",
    "controllerrevisions": "/apis/apps/v1",
    "services": "/api/v1",
    "configmaps": "/api/v1",
    "secrets": "/api/v1",
    "serviceaccounts": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
}
_UNSTEADY = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation")


def picture(world: World, redis: Redis, system: str) -> Picture:
    """What there is now. `system`: the namespace of the tenants."""
    api, namespace = world.api, world.namespace
    ours = f"labelSelector={LABEL_MANAGED_BY}={MANAGED_BY}"
    replicas = {
        item["metadata"]["name"]: item["metadata"]["labels"][LABEL_DEPLOYMENT]
        for item in api.get(f"/apis/apps/v1/namespaces/{namespace}/statefulsets?{ours}")["items"]
    }
    found: dict[str, list[Any]] = {
        plural: [_child(plural, item) for item in api.get(f"{root}/namespaces/{namespace}/{plural}?{ours}")["items"]]
        for plural, root in _KINDS.items()
    }
    # A StatefulSet's own history is named after its replica; ours says what was written.
    found["controllerrevisions"] = [each for each in found["controllerrevisions"] if _is_snapshot(each)]
    found["pods"] = [_pod(world, pod) for pod in api.get(f"/api/v1/namespaces/{namespace}/pods?{ours}")["items"]]
    users = {
        "modeldeployments": api.get(f"{_OURS}/namespaces/{namespace}/modeldeployments")["items"],
        "acceleratorpools": api.get(f"{_OURS}/acceleratorpools")["items"],
        "tenants": api.get(f"{_OURS}/namespaces/{system}/tenants")["items"],
    }
    for plural, items in users.items():
        of_world = [
            i for i in items if i["metadata"].get("namespace") == namespace or _is_of(world, i["metadata"]["name"])
        ]
        found[plural] = [_users(item) for item in of_world]
    for name, key in (("routes", redis_keys.ROUTES), ("tenants in Redis", redis_keys.TENANTS)):
        held: dict[bytes, bytes] = redis.hgetall(key)  # type: ignore[assignment]
        found[name] = [
            {"name": entry.decode(), "value": json.loads(value)}
            for entry, value in held.items()
            if _is_of(world, entry.decode())
        ]
    return {kind: sorted(_line(item, replicas, namespace) for item in items) for kind, items in found.items()}


def is_settled(world: World) -> bool:
    """Whether every deployment says that it is complete, and no pod comes or goes."""
    deployments = world.api.get(f"{_OURS}/namespaces/{world.namespace}/modeldeployments")["items"]
    pods = world.api.get(f"/api/v1/namespaces/{world.namespace}/pods")["items"]
    wanted = 0
    for deployment in deployments:
        spec, status = deployment["spec"], deployment.get("status") or {}
        replicas = 0 if spec["lifecycle"].get("stopped") else spec["replicas"]
        wanted += replicas
        is_current = status.get("observedGeneration") == deployment["metadata"]["generation"]
        reason = condition(deployment, "Progressing").get("reason")
        counts = (status.get("replicas"), status.get("readyReplicas"))
        if not is_current or counts != (replicas, replicas) or reason not in ("RolloutComplete", "Stopped"):
            return False
    held = {pod["metadata"]["labels"].get(LABEL_REPLICA) for pod in pods}
    return len(held) == wanted and all(
        condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"] for pod in pods
    )


def _child(plural: str, item: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in item["metadata"].items() if key not in _UNSTEADY}
    for owner in metadata.get("ownerReferences", ()):
        owner["uid"] = ""
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    if plural == "secrets":
        kept["data"] = sorted(item["data"])
    return {**kept, "metadata": metadata}


def _is_snapshot(revision: dict[str, Any]) -> bool:
    return LABEL_WRITTEN in revision["metadata"]["labels"]


def _users(item: dict[str, Any]) -> dict[str, Any]:
    status = item.get("status") or {}
    for each in status.get("conditions", ()):
        each["lastTransitionTime"] = ""
    metadata = item["metadata"]
    return {
        "name": metadata["name"],
        "annotations": metadata.get("annotations"),
        "generation": metadata["generation"],
        "spec": item["spec"],
        "status": status,
    }


def _pod(world: World, pod: dict[str, Any]) -> dict[str, Any]:
    """Where it is, by pool and not by node, and what it runs."""
    labels = pod["metadata"]["labels"]
    node = world.api.get(f"/api/v1/nodes/{pod['spec']['nodeName']}") if "nodeName" in pod["spec"] else None
    return {
        "replica": labels.get(LABEL_REPLICA),
        "pool": labels.get(LABEL_POOL),
        "revision": labels.get(LABEL_REVISION),
        "node of": node["metadata"]["labels"]["hanmaru.test/pool"] if node else None,
        "is cordoned": bool(node and node["spec"].get("unschedulable")),
        "ready": condition(pod, "Ready").get("status"),
        "images": [container["image"] for container in pod["spec"]["containers"]],
    }


def _is_of(world: World, name: str) -> bool:
    return name.endswith(f"-{world.suffix}")


def _line(item: dict[str, Any], replicas: dict[str, str], namespace: str) -> str:
    text = json.dumps(item, sort_keys=True, ensure_ascii=False)
    for replica, deployment in replicas.items():
        text = text.replace(replica, f"{deployment}-REPLICA")
    return text.replace(namespace, "NAMESPACE")
