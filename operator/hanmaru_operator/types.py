"""What the operator saw and what it decided, as values: the words between observe, plan, render and apply.

`observe` makes the facts from the store, `plan` turns facts into steps, `reconcile` hands them on. Times are Unix
seconds. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NewType

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.names import ModelId, ReplicaId

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""
PoolName = NewType("PoolName", str)
NodeName = NewType("NodeName", str)
Revision = NewType("Revision", str)
"""Ten hexadecimal digits: a hash of what the user wrote and the pinned engine image."""


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """One object; also what the work queue holds."""

    kind: str
    namespace: str
    """Empty for objects of the cluster."""
    name: str


# --- facts: pods, nodes, pools, replicas ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod as far as it takes room on a node or belongs to one of our groups."""

    namespace: str
    name: str
    uid: str
    node: NodeName | None
    """Where it is bound."""
    planned_node: NodeName | None
    """Where a pod of ours, its gate lifted, is meant to be bound."""
    gates: tuple[str, ...]
    """Scheduling gates it still has, ours and others'."""
    requests: Mapping[str, float]
    """By resource: cores, bytes, devices. What the scheduler counts (init containers and overhead included)."""
    is_ready: bool
    is_terminating: bool
    has_ended: bool
    """Phase Succeeded or Failed: it takes no room."""
    created_at: float
    gate_lifted_at: float | None
    """When our gate was lifted."""
    replica: ReplicaId | None
    """The group it belongs to; None: not ours."""
    ordinal: int | None
    """Its rank in the group."""
    is_evicted: bool = False
    """Its condition DisruptionTarget is true: it is being evicted, preempted or its node is gone."""
    ready_at: float | None = None
    """When its condition Ready last became true. None: it is not ready."""
    ends_by: float | None = None
    """Its deletionTimestamp: when a pod that is terminating should be gone. None: it is not terminating."""
    affinity_terms: int = 0
    """Terms of its required node affinity, of a pod of ours: each is narrowed when its gate is lifted."""
    lifted_with: str = ""
    """`groups.digest_of` the group's pods when our gate was lifted. Empty: not by us, or not yet."""
    report: str = ""
    """Of a pod that read a model's facts: its termination message."""
    trouble: str = ""
    """Why a pod of ours does not start, or does not stay up, as its kubelet says. Empty: nothing is known of any."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node and what it offers."""

    name: NodeName
    labels: Mapping[str, str]
    allocatable: Mapping[str, float]
    """By resource: cores, bytes, devices."""
    is_ready: bool
    is_schedulable: bool
    """Not cordoned."""
    taints: tuple[tuple[str, str, str], ...] = ()
    """(key, value, effect)."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node of a pool with what is left on it, every pod counted: bound ones, and ours that are planned there."""

    node: NodeFacts
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A pool with its nodes: those its selector matches, less those an older pool has."""

    name: PoolName
    uid: str
    generation: int
    created_at: float
    spec: AcceleratorPoolSpec
    nodes: tuple[NodeRoom, ...]
    overlapping: Mapping[NodeName, PoolName] = field(default_factory=dict)
    """Nodes its selector matches that belong to an older pool, and which."""


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """What a replica's registration in Redis says."""

    is_alive: bool
    running_requests: int = 0
    queued_requests: int = 0
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One replica: a StatefulSet and its pods."""

    id: ReplicaId
    namespace: str
    deployment: str
    uid: str
    """Of the StatefulSet; empty when only pods are left of it."""
    pool: PoolName
    revision: Revision
    size: int
    """Pods of the group."""
    created_at: float
    is_terminating: bool
    """Its StatefulSet is being deleted or gone; what pods are left are draining."""
    pods: tuple[PodFacts, ...]
    """In order of rank."""
    lease: LeaseFacts | None
    """None: Redis did not answer, or the replica never registered."""

    @property
    def is_ready(self) -> bool:
        """Whether the whole group is there and serves."""
        return (
            not self.is_terminating
            and len(self.pods) == self.size
            and all(pod.is_ready and not pod.is_terminating for pod in self.pods)
        )

    @property
    def is_waiting(self) -> bool:
        """Whether it holds no device yet: pods are missing or gated."""
        return not self.is_terminating and not any(pod.node or not pod.gates for pod in self.pods)


# --- what a deployment's reconcile sees ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolOption:
    """One entry of `spec.pools`, resolved: the pool, and a plan for the model on it or the reason why not."""

    pool: PoolName
    min_replicas: int
    max_replicas: int | None
    revision: Revision | None
    """What a new replica here would run. None: nothing can run here, see `refusal`."""
    refusal: str = ""
    """Why no new replica is made here. With a revision: what runs already stays."""
    is_pending: bool = False
    """Whether it will soon be known what can run here: until then nothing is replaced or moved, and nothing made in a
    pool that comes after this one."""
    pod_requests: Mapping[str, float] = field(default_factory=dict)
    """What one pod of a replica asks for."""
    group_size: int = 1
    free_groups: int = 0
    """Groups that would fit now, behind those that wait already."""
    devices_missing: int = 0
    """Devices that one more group lacks; 0 when it fits."""
    no_room: str = ""
    """Why one more group does not fit now, in words. Empty: it fits."""
    fits_empty: bool = True
    """Whether a group would fit if nothing else ran in the pool: it is worth waiting here."""
    resource: str = ""
    """The devices' resource."""
    domain_key: str = ""
    """The label in one value of which a whole group stays."""
    bind_timeout_s: float = 300.0
    """A group whose gates are lifted and that is not bound by then waits anew."""


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """A deployment and its replicas at one moment."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: ModelDeploymentSpec
    options: tuple[PoolOption, ...]
    """In order of preference."""
    replicas: tuple[ReplicaFacts, ...]
    may_run: bool
    """False: the licence, the route or a permission is missing, or it is stopped; every replica goes."""
    unhealthy_nodes: frozenset[NodeName]
    """Nodes that are not ready, unreachable, or gone though pods are still bound to them."""
    cordoned_nodes: frozenset[NodeName]
    """Nodes that someone wants empty."""
    preferred_free_since: float | None
    """Since when a better pool has had room for a replica that runs in a worse one. None: it has none."""
    now: float
    without_room: frozenset[ReplicaId] = frozenset()
    """Replicas that wait in a pool that has no room for them now (`plan_lifts` tells)."""

    @property
    def id(self) -> ModelId:
        """`namespace/name`."""
        return ModelId(f"{self.namespace}/{self.name}")


# --- steps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateReplica:
    """Make a new group in a pool."""

    id: ReplicaId
    pool: PoolName
    revision: Revision


class Why(StrEnum):
    """Why a replica goes or starts anew. Part of events and metrics."""

    SCALED_DOWN = "ScaledDown"
    REPLACED = "Replaced"
    """A newer revision takes its place."""
    STOPPED = "Stopped"
    """The deployment is stopped, deleted or may not run."""
    NODE_LOST = "NodeLost"
    NODE_CORDONED = "NodeCordoned"
    MOVED = "Moved"
    """To a pool that is preferred."""
    FELL_BACK = "FellBack"
    """From a full pool, before it held devices."""
    NOT_BOUND = "NotBound"
    """Its gates were lifted and the whole group was not bound in time."""
    GROUP_BROKEN = "GroupBroken"
    """A pod of it is gone, so the whole group starts anew."""


@dataclass(frozen=True, slots=True)
class DeleteReplica:
    """Drain the group and take it away, with all that belongs to it."""

    id: ReplicaId
    why: Why


@dataclass(frozen=True, slots=True)
class RestartGroup:
    """Delete the pods of the group; the StatefulSet makes them anew, gated."""

    id: ReplicaId
    why: Why


ReplicaStep = CreateReplica | DeleteReplica | RestartGroup


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """What to do now, and when to look again."""

    steps: tuple[ReplicaStep, ...]
    look_again_at: float | None = None
    """Time at which the plan may change though nothing else does (a timeout, hysteresis)."""


@dataclass(frozen=True, slots=True)
class LiftGate:
    """Bind one pod of a whole group to its node: narrow its affinity, then remove our gate."""

    namespace: str
    pod: str
    uid: str
    node: NodeName
    lifted_with: str
    """`groups.digest_of` the group's pods: a pod that is made anew later does not belong to them."""


# --- conditions and events -----------------------------------------------------------------------------------------


class ConditionType(StrEnum):
    """Statements in a status."""

    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    UNSCHEDULABLE = "Unschedulable"
    LICENCE_NOT_ACCEPTED = "LicenceNotAccepted"
    NAME_CONFLICT = "NameConflict"
    NOT_ALLOWED = "NotAllowed"
    DEFAULTS_OUTDATED = "DefaultsOutdated"
    EXPERIMENTAL = "Experimental"
    FIELDS_IGNORED = "FieldsIgnored"
    """The author's pod template says what only a pool's may."""
    POOL_OVERLAP = "PoolOverlap"


class ProgressReason(StrEnum):
    """Reasons of `Progressing`: how far a rollout is."""

    ROLLOUT_COMPLETE = "RolloutComplete"
    READING_MODEL = "ReadingModel"
    """The checkpoint is not known yet, so no pool can be judged."""
    STARTING_REPLICAS = "StartingReplicas"
    REPLACING_REPLICAS = "ReplacingReplicas"
    WAITING_FOR_DEVICES = "WaitingForDevices"
    PAUSED = "Paused"
    """By `rollout.paused`."""
    STOPPED = "Stopped"
    """By `lifecycle.stopped`: no replica is wanted."""
    REFUSED = "Refused"
    """The deployment may not run; another condition says why."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"


class UnschedulableReason(StrEnum):
    """Reasons of `Unschedulable`."""

    NO_POOL_FITS = "NoPoolFits"
    """No pool can run the model, however empty: nothing goes on until somebody changes a spec or a pool."""
    DEVICES_MISSING = "DevicesMissing"
    MAX_REPLICAS = "MaxReplicas"


@dataclass(frozen=True, slots=True)
class Statement:
    """One condition before times and generations are added."""

    type: ConditionType
    is_true: bool | None
    """None: unknown."""
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class EventNote:
    """One Kubernetes Event on an object of ours."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
