"""From objects as the API server sends them to what the operator keeps of them.

The watch, the resync and `apply` (which reads its own writes) call `entry_of`; `objects` keeps entries. Thousands of
nodes and pods are held, so an entry is slim: no managed fields, no status but that of our three kinds, nothing of
other people's objects beyond what counts for room on a node. Pure.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from hanmaru_contracts import names
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ReplicaId

from hanmaru_operator import kinds
from hanmaru_operator.quantity import parse_quantity
from hanmaru_operator.types import Manifest, NodeFacts, NodeName, ObjectKey, PodFacts

_USERS_KINDS = frozenset(api.kind for api in (kinds.ACCELERATOR_POOLS, kinds.MODEL_DEPLOYMENTS, kinds.TENANTS))
_LABELS_KEPT = frozenset(api.kind for api in kinds.APIS) - _USERS_KINDS - {"Node", "Pod", "Secret"}
_DATA_KEPT = frozenset({"ConfigMap", "ControllerRevision", "Secret"})
_NOT_DIGESTED = frozenset({"apiVersion", "kind", "metadata", "status"})
_OUR_PREFIX = "serving.hanmaru.dev/"
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_CRASHING = "CrashLoopBackOff"
_IMAGE_MISSING = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"})
"""A kubelet says the first two in turn."""
_MAX_TROUBLE_CHARS = 300
MAX_SECRET_VALUE_CHARS = 8192
"""Of one value, in base64. A tenant's namespace may hold other Secrets too, a megabyte each; keys are short."""

_log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one object."""

    key: ObjectKey
    uid: str
    resource_version: int
    """Grows with every change of any object of the kind."""
    generation: int
    created_at: float
    is_terminating: bool
    owner_uid: str
    """Of its controller; empty: it has none."""
    labels: Mapping[str, str]
    """Of children, of our pods and of namespaces; others' are not kept (a node's are in its facts)."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Ours (`serving.hanmaru.dev/…`) on the three kinds."""
    digest: bytes = b""
    """Over labels, annotations, owners and content, of objects that we apply: it differs after a hand's edit."""
    facts: PodFacts | NodeFacts | None = None
    spec_json: bytes = field(default=b"", repr=False)
    """Of the three kinds; of a StatefulSet only `replicas`. Empty: not kept."""
    status_json: bytes = field(default=b"", repr=False)
    """Of the three kinds."""
    data_json: bytes = field(default=b"", repr=False)
    """Of our ConfigMaps and ControllerRevisions, and of Secrets in tenants' namespaces (base64, as the API has it)."""

    @property
    def spec(self) -> dict[str, Any]:
        """Decoded anew at each call."""
        return _decoded(self.spec_json)

    @property
    def status(self) -> dict[str, Any]:
        """Decoded anew at each call."""
        return _decoded(self.status_json)

    @property
    def data(self) -> dict[str, Any]:
        """Decoded anew at each call."""
        return _decoded(self.data_json)

    @property
    def pod(self) -> PodFacts:
        """Of a pod."""
        assert isinstance(self.facts, PodFacts)
        return self.facts

    @property
    def node(self) -> NodeFacts:
        """Of a node."""
        assert isinstance(self.facts, NodeFacts)
        return self.facts

    def says_the_same(self, other: Entry) -> bool:
        """Whether nothing that we keep differs, apart from the version and our own status."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.is_terminating == other.is_terminating
            and self.owner_uid == other.owner_uid
            and self.labels == other.labels
            and self.annotations == other.annotations
            and self.digest == other.digest
            and self.facts == other.facts
            and self.spec_json == other.spec_json
            and self.data_json == other.data_json
        )


def readable_entry(kind: str, raw: Manifest) -> Entry | None:
    """As `entry_of`; None, and a log line, for one that cannot be read: it must not hide all others of its kind."""
    try:
        return entry_of(kind, raw)
    except (KeyError, TypeError, ValueError, HanmaruError) as error:
        metadata = raw.get("metadata") or {}
        where = {"namespace": metadata.get("namespace"), "name": metadata.get("name")}
        log_event(_log, logging.ERROR, "object.unreadable", kind=kind, **where, error=type(error).__name__)
        return None


def entry_of(kind: str, raw: Manifest) -> Entry:
    """What to keep of `raw`, an object of this kind (items of lists do not name theirs)."""
    metadata = raw["metadata"]
    labels: Mapping[str, str] = metadata.get("labels") or {}
    key = ObjectKey(sys.intern(kind), sys.intern(metadata.get("namespace", "")), metadata["name"])
    is_users = kind in _USERS_KINDS
    is_ours = labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
    return Entry(
        key=key,
        uid=metadata["uid"],
        resource_version=int(metadata["resourceVersion"]),
        generation=metadata.get("generation", 0),
        created_at=_time(metadata["creationTimestamp"]),
        is_terminating="deletionTimestamp" in metadata,
        owner_uid=_controller_uid(metadata),
        labels=_interned(labels) if kind in _LABELS_KEPT or (kind == "Pod" and is_ours) else _NOTHING,
        annotations=_our_annotations(metadata) if is_users else _NOTHING,
        digest=_digest(raw) if kind in _LABELS_KEPT and kind != "Namespace" else b"",
        facts=_facts(kind, raw, key, is_ours=is_ours),
        spec_json=_kept_spec(kind, raw) if is_users or kind == "StatefulSet" else b"",
        status_json=_encoder.encode(raw.get("status") or {}) if is_users else b"",
        data_json=_kept_data(kind, raw) if kind in _DATA_KEPT else b"",
    )


_NOTHING: Mapping[str, str] = {}


def _decoded(json: bytes) -> dict[str, Any]:
    return msgspec.json.decode(json, type=dict[str, Any]) if json else {}


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _written_time(text: str | None) -> float | None:
    """Of an annotation, which anybody may write: a pod with nonsense in it still takes its room."""
    try:
        return _time(text) if text else None
    except ValueError:
        return None


def _controller_uid(metadata: Mapping[str, Any]) -> str:
    owners = metadata.get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _our_annotations(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    annotations = metadata.get("annotations") or {}
    return {name: value for name, value in annotations.items() if name.startswith(_OUR_PREFIX)}


def _interned(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Thousands of objects share their labels' names and most of the values."""
    return {sys.intern(name): sys.intern(value) for name, value in labels.items()}


def _digest(raw: Manifest) -> bytes:
    metadata = raw["metadata"]
    content = {name: value for name, value in raw.items() if name not in _NOT_DIGESTED}
    marks = [metadata.get("labels"), metadata.get("annotations"), metadata.get("ownerReferences")]
    return hashlib.sha256(_encoder.encode([content, marks])).digest()


def _kept_spec(kind: str, raw: Manifest) -> bytes:
    spec = raw.get("spec") or {}
    return _encoder.encode({"replicas": spec.get("replicas", 1)} if kind == "StatefulSet" else spec)


def _kept_data(kind: str, raw: Manifest) -> bytes:
    data = raw.get("data") or {}
    if kind == "Secret":
        data = {name: value for name, value in data.items() if len(value) <= MAX_SECRET_VALUE_CHARS}
    return _encoder.encode(data)


def _facts(kind: str, raw: Manifest, key: ObjectKey, *, is_ours: bool) -> PodFacts | NodeFacts | None:
    if kind == "Pod":
        return _pod_facts(raw, key, is_ours=is_ours)
    return _node_facts(raw) if kind == "Node" else None


# --- nodes ---------------------------------------------------------------------------------------------------------


def _node_facts(raw: Manifest) -> NodeFacts:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    return NodeFacts(
        name=NodeName(raw["metadata"]["name"]),
        labels=_interned(raw["metadata"].get("labels") or {}),
        allocatable=_quantities(status.get("allocatable")),
        is_ready=_is_true(status, "Ready"),
        is_schedulable=not spec.get("unschedulable", False),
        taints=tuple((taint["key"], taint.get("value", ""), taint["effect"]) for taint in spec.get("taints") or ()),
    )


def _is_true(status: Mapping[str, Any], condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions") or ())


def _quantities(resources: Mapping[str, str] | None) -> dict[str, float]:
    return {sys.intern(name): parse_quantity(text) for name, text in (resources or {}).items()}


# --- pods ----------------------------------------------------------------------------------------------------------


def _pod_facts(raw: Manifest, key: ObjectKey, *, is_ours: bool) -> PodFacts:
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    labels = (metadata.get("labels") or {}) if is_ours else _NOTHING
    annotations = (metadata.get("annotations") or {}) if is_ours else _NOTHING
    node, replica = spec.get("nodeName"), labels.get(names.LABEL_REPLICA)
    lifted_at = annotations.get(names.ANNOTATION_GATE_LIFTED_AT)
    planned_node = annotations.get(names.ANNOTATION_PLANNED_NODE)
    is_reader = labels.get(names.LABEL_COMPONENT) == names.COMPONENT_MODEL_FACTS
    return PodFacts(
        namespace=key.namespace,
        name=key.name,
        uid=metadata["uid"],
        node=NodeName(sys.intern(node)) if node else None,
        planned_node=NodeName(sys.intern(planned_node)) if planned_node else None,
        gates=tuple(sys.intern(gate["name"]) for gate in spec.get("schedulingGates") or ()),
        requests=pod_requests(spec),
        # Of others' pods only the room they take counts: what else happens to them is no news.
        is_ready=is_ours and _is_true(status, "Ready"),
        is_terminating="deletionTimestamp" in metadata,
        has_ended=status.get("phase") in ("Succeeded", "Failed"),
        created_at=_time(metadata["creationTimestamp"]),
        gate_lifted_at=_written_time(lifted_at),
        replica=ReplicaId(sys.intern(replica)) if replica else None,
        ordinal=_ordinal(labels),
        is_evicted=is_ours and _is_true(status, "DisruptionTarget"),
        ready_at=_ready_at(status) if is_ours else None,
        ends_by=_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
        affinity_terms=_affinity_terms(spec) if is_ours else 0,
        lifted_with=annotations.get(names.ANNOTATION_LIFTED_WITH, ""),
        report=_report(status) if is_reader else "",
        trouble=_trouble(status, can_be_unschedulable=is_reader) if is_ours else "",
    )


def _ready_at(status: Mapping[str, Any]) -> float | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True" and condition.get("lastTransitionTime"):
            return _time(condition["lastTransitionTime"])
    return None


def _affinity_terms(spec: Mapping[str, Any]) -> int:
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    return len((required or {}).get("nodeSelectorTerms") or ())


def _report(status: Mapping[str, Any]) -> str:
    """What its only container said when it ended; empty while it runs."""
    states = [container.get("state") or {} for container in status.get("containerStatuses") or ()]
    return next((ended["terminated"].get("message", "") for ended in states if "terminated" in ended), "")


def _trouble(status: Mapping[str, Any], *, can_be_unschedulable: bool) -> str:
    """Without what changes from one try to the next, or each would be a new status.

    A group that was let in and is not bound is taken back, so for it the scheduler's words do not count.
    """
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if not reason and _runs_between_two_ends(container):
            reason = _CRASHING
        if reason and reason not in _STARTING:
            return f"{container['name']}: {_said(reason, waiting, container)}"[:_MAX_TROUBLE_CHARS]
    if can_be_unschedulable:
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return str(condition.get("message") or "Unschedulable")[:_MAX_TROUBLE_CHARS]
    return ""


def _runs_between_two_ends(container: Mapping[str, Any]) -> bool:
    """Whether it ended more than once and has not started up since: it crashes still, waiting or not."""
    has_ended = bool((container.get("lastState") or {}).get("terminated"))
    return has_ended and not container.get("started") and int(container.get("restartCount") or 0) > 1


def _said(reason: str, waiting: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    if reason in _IMAGE_MISSING:
        return f"image {container.get('image')} cannot be pulled"
    if reason == _CRASHING:
        last = (container.get("lastState") or {}).get("terminated") or {}
        return f"ends again and again, last with exit status {last.get('exitCode')} ({last.get('reason')})"
    return f"{reason}: {waiting.get('message')}" if waiting.get("message") else reason


def _ordinal(labels: Mapping[str, str]) -> int | None:
    index = labels.get(names.LABEL_POD_INDEX, "")
    return int(index) if index.isdecimal() else None


def pod_requests(spec: Mapping[str, Any]) -> dict[str, float]:
    """What the scheduler counts for a pod of this spec, `pods` included.

    The greater of all containers together with the sidecars, and of each init container with the sidecars started
    before it; then the pod's own requests in place of its containers', and its overhead on top (KEP-753, KEP-2837).
    """
    sidecars: dict[str, float] = {}
    greatest: dict[str, float] = {}
    for container in spec.get("initContainers") or ():
        own = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, own)
            own = sidecars
        else:
            own = _sum(own, sidecars)
        greatest = _greater(greatest, own)
    running = sidecars
    for container in spec.get("containers") or ():
        running = _sum(running, _requests(container))
    counted = {**_greater(greatest, running), **_requests(spec)}
    return {**_sum(counted, _quantities(spec.get("overhead"))), "pods": 1.0}


def _requests(container: Mapping[str, Any]) -> dict[str, float]:
    """Requests; where they are absent the limits count, as the API server fills them in when a pod is made."""
    resources = container.get("resources") or {}
    return _quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _greater(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}}
