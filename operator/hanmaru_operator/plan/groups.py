"""What the pods of one group tell: whether it holds devices, was lifted, is broken.

Shared by the decisions about replicas (`replicas`, `maintenance`) and about gates (`lifts`), so that what one restarts
the other does not complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from hanmaru_contracts.names import GATE_GROUP

from hanmaru_operator.types import NodeName, PodFacts, ReplicaFacts


def is_lifted(pod: PodFacts) -> bool:
    """Whether our gate is gone, so that the scheduler may bind the pod."""
    return GATE_GROUP not in pod.gates


def is_at_large(pod: PodFacts) -> bool:
    """Whether it holds devices, or may at any moment, and nobody has told it to end."""
    return is_lifted(pod) and not pod.is_terminating and not pod.has_ended


def lifted_at(pods: Iterable[PodFacts]) -> float | None:
    """When the first gate of the group was lifted, or a pod first planned. None: not yet."""
    times = [
        pod.created_at if pod.gate_lifted_at is None else pod.gate_lifted_at
        for pod in pods
        if is_lifted(pod) or pod.planned_node
    ]
    return min(times, default=None)


def is_bound(replica: ReplicaFacts) -> bool:
    """Whether the whole group is on nodes."""
    return len(replica.pods) == replica.size and all(pod.node for pod in replica.pods)


def digest_of(pods: Iterable[PodFacts]) -> str:
    """Tells one set of pods from another, whatever their order; kept with each pod that is lifted."""
    return hashlib.sha256("\n".join(sorted(pod.uid for pod in pods)).encode()).hexdigest()[:10]


def is_broken(pods: Sequence[PodFacts], size: int) -> bool:
    """Whether a pod of a group that was set free has ended, is going, or has been made anew.

    A pod may be made anew before anybody sees the old one go, so each lifted pod knows whom it was lifted with. Gates
    are lifted only when all pods exist: beside a lifted pod, a missing one was there and is gone.
    """
    free = [pod for pod in pods if is_lifted(pod)]
    if not free:
        return False
    if len(pods) < size or any(pod.is_terminating or pod.has_ended or pod.is_evicted for pod in pods):
        return True
    present = digest_of(pods)
    return any(pod.lifted_with not in ("", present) for pod in free)


def nodes_of(replica: ReplicaFacts) -> set[NodeName]:
    """Nodes where its pods run or drain."""
    return {pod.node for pod in replica.pods if pod.node and not pod.has_ended}


def is_serving(replica: ReplicaFacts) -> bool:
    """Whether callers may be getting answers from it: its pods are ready, or its registration is alive.

    Gateways follow the registration, so a group whose pods merely look unready still serves.
    """
    return replica.is_ready or (replica.lease is not None and replica.lease.is_alive and not replica.lease.is_draining)
