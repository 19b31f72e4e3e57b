"""Kubernetes objects as far as the doctor looks at them. `fetch` decodes the API server's JSON into these.

Everything is optional: an object that lacks a field is judged by what it has. Secrets come as `Metadata` alone; the
API server is asked for nothing else of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Labels = Mapping[str, str]


class _Object(msgspec.Struct, frozen=True, rename="camel"):
    """Unknown fields are left out; names are the API's."""


class Owner(_Object, frozen=True):
    """Who made an object."""

    kind: str = ""
    name: str = ""


class Metadata(_Object, frozen=True):
    """Of any object."""

    name: str = ""
    namespace: str = ""
    labels: Labels = {}
    annotations: Labels = {}
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    uid: str = ""
    owner_references: tuple[Owner, ...] = ()


class Condition(_Object, frozen=True):
    """A statement in a status."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class Kubernetes(_Object, frozen=True):
    """An object with nothing but a head: Namespaces, Secrets."""

    metadata: Metadata = Metadata()

    @property
    def where(self) -> str:
        """`name` or `name -n namespace`, as kubectl takes it."""
        place = f" -n {self.metadata.namespace}" if self.metadata.namespace else ""
        return f"{self.metadata.name}{place}"


# --- nodes ---------------------------------------------------------------------------------------------------------


class Taint(_Object, frozen=True):
    """Of a node."""

    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(_Object, frozen=True):
    """What an administrator says of a node."""

    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(_Object, frozen=True):
    """What its kubelet says."""

    allocatable: Mapping[str, str] = {}
    capacity: Mapping[str, str] = {}
    conditions: tuple[Condition, ...] = ()


class Node(Kubernetes, frozen=True):
    """A node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def is_ready(self) -> bool:
        """Whether its kubelet says so."""
        return any(one.type == "Ready" and one.status == "True" for one in self.status.conditions)


# --- pods and what makes them --------------------------------------------------------------------------------------


class State(_Object, frozen=True):
    """Why a container waits, or how it ended."""

    reason: str = ""
    message: str = ""
    exit_code: int = 0


class ContainerState(_Object, frozen=True):
    """One of them is there."""

    waiting: State | None = None
    terminated: State | None = None


class ContainerStatus(_Object, frozen=True):
    """One container."""

    name: str = ""
    image: str = ""
    restart_count: int = 0
    ready: bool = False
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class Gate(_Object, frozen=True):
    """A scheduling gate."""

    name: str = ""


class PodSpec(_Object, frozen=True):
    """Where a pod goes."""

    node_name: str = ""
    scheduling_gates: tuple[Gate, ...] = ()


class PodStatus(_Object, frozen=True):
    """How a pod is."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Kubernetes, frozen=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    def says(self, condition: str) -> Condition:
        """The condition of that type, an empty one without."""
        return next((one for one in self.status.conditions if one.type == condition), Condition())


class WorkloadSpec(_Object, frozen=True):
    """Of a Deployment or StatefulSet."""

    replicas: int = 1


class WorkloadStatus(_Object, frozen=True):
    """Of a Deployment or StatefulSet."""

    replicas: int = 0
    ready_replicas: int = 0


class Workload(Kubernetes, frozen=True):
    """A Deployment or a StatefulSet."""

    kind: str = ""
    """Lists do not say it of their items: `fetch` does."""
    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class LeaseSpec(_Object, frozen=True):
    """Who leads."""

    holder_identity: str | None = None
    lease_duration_seconds: int = 0
    renew_time: str = ""


class Lease(Kubernetes, frozen=True):
    """A lease."""

    spec: LeaseSpec = LeaseSpec()


class Event(_Object, frozen=True):
    """Something that was noticed, in the core form."""

    reason: str = ""
    message: str = ""
    last_timestamp: str | None = None
    event_time: str | None = None
    involved_object: Owner = Owner()
    metadata: Metadata = Metadata()


# --- storage, network, kinds ---------------------------------------------------------------------------------------


class ClaimSpec(_Object, frozen=True):
    """What a claim asks for."""

    access_modes: tuple[str, ...] = ()
    storage_class_name: str | None = None


class ClaimStatus(_Object, frozen=True):
    """What it got."""

    phase: str = ""
    capacity: Mapping[str, str] = {}


class Claim(Kubernetes, frozen=True):
    """A PersistentVolumeClaim."""

    spec: ClaimSpec = ClaimSpec()
    status: ClaimStatus = ClaimStatus()


class NetworkPolicySpec(_Object, frozen=True):
    """Selectors and peers stay as they are: they are nested, and only a few are looked at."""

    pod_selector: Mapping[str, Any] = {}
    policy_types: tuple[str, ...] = ()
    egress: tuple[Mapping[str, Any], ...] = ()


class NetworkPolicy(Kubernetes, frozen=True):
    """A network policy."""

    spec: NetworkPolicySpec = NetworkPolicySpec()


class Version(_Object, frozen=True):
    """One version of a kind."""

    name: str = ""
    served: bool = False
    schema: Mapping[str, Any] = {}


class DefinitionSpec(_Object, frozen=True):
    """A kind's versions."""

    versions: tuple[Version, ...] = ()


class DefinitionStatus(_Object, frozen=True):
    """Whether the kind is served."""

    conditions: tuple[Condition, ...] = ()


class Definition(Kubernetes, frozen=True):
    """A CustomResourceDefinition."""

    spec: DefinitionSpec = DefinitionSpec()
    status: DefinitionStatus = DefinitionStatus()


class Ours(Kubernetes, frozen=True):
    """An AcceleratorPool, ModelDeployment or Tenant: `spec` and `status` as they came, because the models of
    `hanmaru_contracts` read them, and refuse what is not theirs.
    """

    spec: Mapping[str, Any] = {}
    status: Mapping[str, Any] = {}

    def says(self, condition: str) -> Condition:
        """The condition of that type, an empty one without."""
        return next((one for one in self.conditions if one.type == condition), Condition())

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the operator says."""
        return msgspec.convert(self.status.get("conditions") or (), tuple[Condition, ...])
