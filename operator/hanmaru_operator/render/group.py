"""One replica: a StatefulSet with a Service, ServiceAccount, Secret, NetworkPolicy and PodDisruptionBudget. Pure.

`reconcile` renders them for each replica at each turn. All pods of the group come from the revision's snapshot; only
the replica's name and the pool's present placement are put in. A changed StatefulSet restarts nothing: pods are
replaced only when the operator deletes them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hanmaru_contracts import names
from hanmaru_contracts.names import ReplicaId

from hanmaru_operator.render.bundle import Bundle, Placement
from hanmaru_operator.render.identity import Owner, child
from hanmaru_operator.render.pod import REPLICA, REPLICA_KEY, TIER_KEY, TIER_PREFIX, template_labels
from hanmaru_operator.render.settings import RedisFile, RenderSettings
from hanmaru_operator.types import Manifest


@dataclass(frozen=True, slots=True)
class ReplicaSecrets:
    """What a worker is trusted with."""

    replica_key: bytes = field(repr=False)
    """Derived for this replica alone (`keys.replica_key`)."""
    redis: Mapping[RedisFile, str] = field(default_factory=dict, repr=False)
    """To reach Redis with, the same for all replicas."""
    tier_key: bytes = field(default=b"", repr=False)
    """Seals the model's shared cache (`keys.tier_key`), the same for all of its replicas."""
    tier_redis: Mapping[RedisFile, str] = field(default_factory=dict, repr=False)
    """To reach the shared caches' Redis with."""


def replica_manifests(
    bundle: Bundle,
    owner: Owner,
    replica: ReplicaId,
    secrets: ReplicaSecrets,
    settings: RenderSettings,
    placement: Placement | None = None,
) -> tuple[Manifest, ...]:
    """All objects of one replica: the ServiceAccount must come first, the StatefulSet last. Without `placement`: the
    snapshot's.
    """
    labels = _fill(template_labels(owner, bundle.pool, bundle.revision), replica)

    def head(api_version: str, kind: str) -> Manifest:
        return child(api_version, kind, replica, owner, labels)

    return (
        head("v1", "ServiceAccount") | {"automountServiceAccountToken": False},
        head("v1", "Secret") | {"type": "Opaque", "data": _secret_data(secrets, bundle)},
        head("networking.k8s.io/v1", "NetworkPolicy") | {"spec": _network_policy(bundle, replica, settings)},
        head("policy/v1", "PodDisruptionBudget") | {"spec": {"maxUnavailable": 0, "selector": _group(replica)}},
        head("v1", "Service") | {"spec": _service(bundle, replica)},
        head("apps/v1", "StatefulSet") | {"spec": _stateful_set(bundle, replica, placement or bundle.placement)},
    )


def _group(replica: ReplicaId) -> Manifest:
    return {"matchLabels": {names.LABEL_REPLICA: replica}}


def _secret_data(secrets: ReplicaSecrets, bundle: Bundle) -> dict[str, str]:
    """Not immutable: an authority or a password that is renewed must reach the replicas that run."""
    texts = {REPLICA_KEY: secrets.replica_key.hex()} | {str(file): text for file, text in secrets.redis.items()}
    if bundle.engine_spec.get("sharedCache") is not None:
        texts[TIER_KEY] = secrets.tier_key.hex()
        texts |= {f"{TIER_PREFIX}{file}": text for file, text in secrets.tier_redis.items()}
    return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}


def _service(bundle: Bundle, replica: ReplicaId) -> Manifest:
    """Gives the pods names. Ranks meet before any of them is ready."""
    return {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {names.LABEL_REPLICA: replica},
        "ports": [
            {"name": "engine", "port": bundle.http_port, "targetPort": "engine", "protocol": "TCP"},
            {"name": "supervisor", "port": bundle.supervisor_port, "targetPort": "supervisor", "protocol": "TCP"},
        ],
    }


def _stateful_set(bundle: Bundle, replica: ReplicaId, placement: Placement) -> Manifest:
    return {
        "serviceName": replica,
        "replicas": bundle.size,
        # Ranks wait for each other, so none may wait for another's readiness.
        "podManagementPolicy": "Parallel",
        # A group restarts whole, and only when the operator says so.
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 1,
        "selector": _group(replica),
        "template": _placed(_fill(dict(bundle.pod_template), replica), placement),
    }


def _placed(template: Manifest, placement: Placement) -> Manifest:
    """The template on the pool's nodes. Anything else in its affinity stays."""
    spec = dict(template["spec"])
    affinity = dict(spec.get("affinity") or {})
    affinity["nodeAffinity"] = {
        **(affinity.get("nodeAffinity") or {}),
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(placement.node_terms)},
    }
    spec["affinity"] = affinity
    if placement.priority_class:
        spec["priorityClassName"] = placement.priority_class
    if placement.scheduler:
        spec["schedulerName"] = placement.scheduler
    return {**template, "spec": spec}


def _network_policy(bundle: Bundle, replica: ReplicaId, settings: RenderSettings) -> Manifest:
    """Who may reach the group: gateways its engine, the metrics' namespaces its supervisor, its own ranks everything.

    Ways out stay open: Redis, DNS, the collector and a model hub are named differently in every cluster.
    """
    gateways: Manifest = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.gateway_namespace}}
    }
    if settings.gateway_pod_labels:
        gateways["podSelector"] = {"matchLabels": dict(settings.gateway_pod_labels)}
    ingress: list[Manifest] = [
        {"from": [{"podSelector": _group(replica)}]},
        {"from": [gateways], "ports": [{"port": bundle.http_port, "protocol": "TCP"}]},
    ]
    if settings.metrics_namespace_labels:
        metrics = {"namespaceSelector": {"matchLabels": dict(settings.metrics_namespace_labels)}}
        ingress.append({"from": [metrics], "ports": [{"port": bundle.supervisor_port, "protocol": "TCP"}]})
    return {"podSelector": _group(replica), "policyTypes": ["Ingress"], "ingress": ingress}


def _fill(value: Any, replica: ReplicaId) -> Any:
    """`value` with the replica's name wherever `REPLICA` stands."""
    if isinstance(value, str):
        return value.replace(REPLICA, replica)
    if isinstance(value, Mapping):
        return {key: _fill(item, replica) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, replica) for item in value]
    return value
