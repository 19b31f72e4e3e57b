"""Names, labels and owners of what the operator makes. Every other module of `render` uses it; nothing is decided here.

All children of a deployment are owned by it alone, so that deleting it, or its namespace, needs no operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hanmaru_contracts import names
from hanmaru_contracts.crd.kinds import API_VERSION, MODEL_DEPLOYMENT
from hanmaru_contracts.names import ModelId, ReplicaId

from hanmaru_operator.types import Manifest, PoolName, Revision

REPLICA_SUFFIX_CHARS = 5
REPLICA_ID_MAX_CHARS = 50
"""The StatefulSet controller labels each pod with `<name>-<hash of ten>`, and a label's value has at most 63."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The ModelDeployment that owns what is made."""

    namespace: str
    name: str
    uid: str

    @property
    def model(self) -> ModelId:
        """`namespace/name`."""
        return ModelId(f"{self.namespace}/{self.name}")


def replica_id(deployment: str, suffix: str) -> ReplicaId:
    """Name of a replica's StatefulSet, Service and so on: the deployment's, cut to fit, and a random suffix."""
    room = REPLICA_ID_MAX_CHARS - len(suffix) - 1
    return ReplicaId(f"{deployment[:room].rstrip('-')}-{suffix}")


def revision_name(deployment: str, pool: PoolName, revision: Revision) -> str:
    """Name of a revision's snapshot and of its ConfigMap; at most 138 characters of the 253 allowed."""
    return f"{deployment}-{pool}-{revision}"


def first_pods_selector(deployment: str) -> str:
    """Selects the first pod of each replica: autoscalers divide by pods."""
    return f"{names.LABEL_DEPLOYMENT}={deployment},{names.LABEL_POD_INDEX}=0"


def deployment_labels(owner: Owner, component: str) -> dict[str, str]:
    """Labels of everything made for a deployment."""
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: component,
        names.LABEL_DEPLOYMENT: owner.name,
    }


def child(api_version: str, kind: str, name: str, owner: Owner, labels: Mapping[str, str]) -> Manifest:
    """The head of a manifest owned by the deployment."""
    reference = {
        "apiVersion": API_VERSION,
        "kind": MODEL_DEPLOYMENT.name,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        # True would ask for the right to set finalizers on the deployment.
        "blockOwnerDeletion": False,
    }
    metadata = {"name": name, "namespace": owner.namespace, "labels": dict(labels), "ownerReferences": [reference]}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
