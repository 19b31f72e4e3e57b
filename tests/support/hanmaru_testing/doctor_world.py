"""A healthy cluster as the doctor sees it, and objects to break it with. Pure: no API server is here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from hanmaru_cli.doctor.finding import Finding, Mark
from hanmaru_cli.doctor.objects import (
    Claim,
    Kubernetes,
    Lease,
    NetworkPolicy,
    Node,
    Ours,
    Pod,
    Workload,
)
from hanmaru_cli.doctor.world import Listed, World

NOW = 1_795_000_000.0
GPU = "nvidia.com/gpu"
VERSION = "0.1.0"
PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/cuda.driver-version.major": "580"}


def at(seconds_ago: float = 0.0) -> str:
    """A time as the API server writes it."""
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).isoformat()


def listed(*items: Any) -> Listed[Any]:
    return Listed(tuple(items))


def unseen(why: str = "nodes is forbidden") -> Listed[Any]:
    return Listed(unseen=why)


def node(name: str = "a", gpus: str = "8", labels: dict[str, str] | None = None, **spec: Any) -> Node:
    raw = {
        "metadata": {"name": name, "labels": {"zone": "x", **PRODUCT, **(labels or {})}},
        "spec": spec,
        "status": {
            "allocatable": {GPU: gpus, "ephemeral-storage": "1Ti"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    return msgspec.convert(raw, Node)


def pool(name: str = "a100", **spec: Any) -> Ours:
    whole = {
        "nodes": {"selectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}]},
        "devices": {"resource": {"name": GPU}, "memory": "80Gi", "perNode": 8},
        **spec,
    }
    return Ours(spec=whole, metadata=_metadata(name, ""))


def deployment(*conditions: tuple[str, str, str, str], spec: dict[str, Any] | None = None, **status: Any) -> Ours:
    whole = {
        "source": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "k-exaone"}},
        "route": {"name": "k-exaone"},
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "pools": [{"name": "a100"}],
        **(spec or {}),
    }
    said = conditions or (("Available", "True", "AllReplicasReady", "1 of 1 replicas are ready"),)
    return Ours(metadata=_metadata("k-exaone", "models"), spec=whole, status=_status(said, status))


def tenant(*conditions: tuple[str, str, str, str], spec: dict[str, Any] | None = None) -> Ours:
    said = conditions or (("Available", "True", "Ready", ""),)
    whole = {"credentials": [{"name": "laptop", "apiKey": {"sha256": "0" * 64}}], **(spec or {})}
    return Ours(metadata=_metadata("research", "hanmaru"), spec=whole, status=_status(said, {}))


def claim(phase: str = "Bound", mode: str = "ReadOnlyMany") -> Claim:
    raw = {
        "metadata": {"name": "k-exaone", "namespace": "models"},
        "spec": {"accessModes": [mode]},
        "status": {"phase": phase},
    }
    return msgspec.convert(raw, Claim)


def part(component: str, ready: int = 1, replicas: int = 1, version: str = VERSION) -> Workload:
    labels = {
        "app.kubernetes.io/name": "hanmaru",
        "app.kubernetes.io/instance": "hanmaru",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/version": version,
    }
    raw = {
        "metadata": {"name": f"hanmaru-{component}", "namespace": "hanmaru", "labels": labels},
        "kind": "Deployment",
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "readyReplicas": ready},
    }
    return msgspec.convert(raw, Workload)


def lease(holder: str | None = "hanmaru-operator-x", seconds_ago: float = 1.0) -> Lease:
    raw = {
        "metadata": {"name": "hanmaru-operator", "namespace": "hanmaru"},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": at(seconds_ago)},
    }
    return msgspec.convert(raw, Lease)


def pod(status: dict[str, Any] | None = None, gates: Iterable[str] = (), **labels: str) -> Pod:
    raw = {
        "metadata": {"name": "p-0", "namespace": "models", "labels": labels},
        "spec": {"schedulingGates": [{"name": gate} for gate in gates]},
        "status": status or {"phase": "Running"},
    }
    return msgspec.convert(raw, Pod)


def policy(*rules: dict[str, Any], match: dict[str, str] | None = None) -> NetworkPolicy:
    raw = {
        "metadata": {"name": "deny", "namespace": "models"},
        "spec": {"podSelector": {"matchLabels": match or {}}, "policyTypes": ["Egress"], "egress": rules},
    }
    return msgspec.convert(raw, NetworkPolicy)


def named(name: str, namespace: str = "", **labels: str) -> Kubernetes:
    raw = {"metadata": {"name": name, "namespace": namespace, "labels": labels}}
    return msgspec.convert(raw, Kubernetes)


def world(**seen: Any) -> World:
    """A cluster where all is well, but for what is given."""
    healthy: dict[str, Any] = {
        "server": "https://api",
        "version": "v1.36.3",
        "server_time": NOW,
        "local_time": NOW,
        "cli_version": VERSION,
        "nodes": listed(node()),
        "workloads": listed(part("operator"), part("gateway"), part("redis")),
        "leases": listed(lease()),
        "daemons": listed(named("calico-node", "kube-system")),
        "claims": listed(claim()),
        "pods": listed(pod()),
        "pools": listed(pool()),
        "deployments": listed(deployment()),
        "tenants": listed(tenant()),
    }
    return World(**healthy | seen)


def worst(findings: Iterable[Finding]) -> Mark:
    """The worst mark among them."""
    order = [Mark.OK, Mark.NOTE, Mark.UNSEEN, Mark.WARN, Mark.FAIL]
    return max((finding.mark for finding in findings), key=order.index, default=Mark.OK)


def words(findings: Iterable[Finding]) -> str:
    """Everything they say but what is well."""
    return "\n".join(
        f"{finding.subject} {finding.seen} {finding.expected} {finding.to_do}"
        for finding in findings
        if finding.mark is not Mark.OK
    )


def _metadata(name: str, namespace: str) -> Any:
    raw = {"name": name, "namespace": namespace, "uid": name, "generation": 1, "creationTimestamp": at(60)}
    return msgspec.convert({"metadata": raw}, Kubernetes).metadata


def _status(conditions: Iterable[tuple[str, str, str, str]], more: dict[str, Any]) -> dict[str, Any]:
    said = [
        {
            "type": kind,
            "status": holds,
            "reason": reason,
            "message": message,
            "observedGeneration": 1,
            "lastTransitionTime": at(30),
        }
        for kind, holds, reason, message in conditions
    ]
    return {"observedGeneration": 1, "conditions": said, **more}
