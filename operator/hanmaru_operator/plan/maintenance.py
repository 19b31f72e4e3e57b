"""What failing or leaving nodes and broken groups ask for: always the whole group, never one pod.

Called by `replicas`. Nothing is force-deleted: a group on a lost node is deleted by name, its successor has another
name, and what is left of the old one goes when its node returns or is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hanmaru_contracts.names import ReplicaId

from hanmaru_operator.plan.groups import is_at_large, is_bound, is_broken, is_lifted, is_serving, lifted_at, nodes_of
from hanmaru_operator.types import DeploymentFacts, NodeName, PodFacts, ReplicaFacts, Why

LEASE_RECHECK_S = 5.0
"""A worker's lease lasts 5 s, so this is how long a dead one may look alive."""
_DEFAULT_BIND_TIMEOUT_S = 300.0
"""For a replica in a pool that the deployment no longer lists."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """Replicas by what has to happen to them."""

    lost: tuple[ReplicaFacts, ...]
    """Their node is gone and so are they: replaced at once."""
    leaving: tuple[ReplicaFacts, ...]
    """On a node that someone wants empty: replaced first, if devices allow."""
    staying: tuple[ReplicaFacts, ...]
    undecided: frozenset[ReplicaId]
    """On a node that is not ready, but perhaps alive: left alone."""
    restarts: tuple[tuple[ReplicaFacts, Why], ...]
    """Groups whose pods are deleted, to come back gated."""
    look_again_at: float | None


def plan_repairs(facts: DeploymentFacts, live: Sequence[ReplicaFacts]) -> Repairs:
    """Sort the replicas that are not ending."""
    lost = tuple(replica for replica in live if is_lost(replica, facts.unhealthy_nodes))
    left = [replica for replica in live if replica not in lost] if lost else live
    leaving = tuple(replica for replica in left if is_leaving(replica, facts.cordoned_nodes))
    undecided = frozenset(replica.id for replica in left if nodes_of(replica) & facts.unhealthy_nodes)
    restarts: list[tuple[ReplicaFacts, Why]] = []
    looks = [facts.now + LEASE_RECHECK_S] if undecided else []
    for replica in left:
        timeout_s = _bind_timeout_s(facts, replica)
        why = restart_reason(replica, timeout_s, facts.now)
        if why is not None:
            restarts.append((replica, why))
        elif (deadline := bind_deadline(replica, timeout_s, facts.now)) is not None:
            looks.append(deadline)
    staying = tuple(replica for replica in left if replica not in leaving) if leaving else tuple(left)
    return Repairs(lost, leaving, staying, undecided, tuple(restarts), min(looks, default=None))


def is_lost(replica: ReplicaFacts, unhealthy: frozenset[NodeName]) -> bool:
    """Whether it is dead with its node, as two witnesses say: the node is unhealthy, and the lease has expired.

    A lease that is alive means that only the kubelet is cut off. Without knowledge of the lease, Kubernetes' own
    eviction (300 s by default) is waited for: its pods could never restart there, as the old ones cannot end.
    """
    stricken = [pod for pod in replica.pods if pod.node in unhealthy and not pod.has_ended]
    if not stricken:
        return False
    if any(pod.is_terminating or pod.is_evicted for pod in stricken):
        return True
    return replica.lease is not None and not replica.lease.is_alive


def is_leaving(replica: ReplicaFacts, cordoned: frozenset[NodeName]) -> bool:
    """Whether it runs on a node that someone wants empty. Pods that end already come back elsewhere by themselves."""
    return bool(cordoned) and any(
        pod.node in cordoned and not pod.is_terminating and not pod.has_ended for pod in replica.pods
    )


def is_draining(facts: DeploymentFacts, replica: ReplicaFacts) -> bool:
    """Whether it ends and still holds devices that will come free for a successor.

    What ends on a node that is lost or cordoned gives nothing back, so nobody waits for it.
    """
    nodes = nodes_of(replica)
    return replica.is_terminating and bool(nodes) and not nodes & (facts.unhealthy_nodes | facts.cordoned_nodes)


def restart_reason(replica: ReplicaFacts, bind_timeout_s: float, now: float) -> Why | None:
    """Why the whole group has to start anew; None also while it is already doing so."""
    if is_broken(replica.pods, replica.size):
        return Why.GROUP_BROKEN if any(is_at_large(pod) for pod in replica.pods) else None
    since = _unbound_since(replica)
    return None if since is None or abs(now - since) < bind_timeout_s else Why.NOT_BOUND


def bind_deadline(replica: ReplicaFacts, bind_timeout_s: float, now: float) -> float | None:
    """When a group that was lifted has to be bound. None: it is bound, or waits."""
    since = _unbound_since(replica)
    return None if since is None else min(since, now) + bind_timeout_s


def keep_for_now(facts: DeploymentFacts, repairs: Repairs, kept: Sequence[ReplicaFacts], coming: int) -> int:
    """How many of the leaving replicas still serve until their successors do.

    `kept`: the other replicas that stay for now; `coming`: new ones made at this moment that have room. Successors
    without room, and those that do not start within the deployment's time, are not waited for: a drain has to end.
    """
    ready = sum(replica.is_ready for replica in kept)
    starting = sum(
        not replica.is_ready
        and replica.id not in facts.without_room
        and replica.id not in repairs.undecided
        and not is_overdue(facts, replica)
        for replica in kept
    )
    return max(0, min(facts.spec.replicas - ready, starting + coming))


def is_overdue(facts: DeploymentFacts, replica: ReplicaFacts) -> bool:
    """Whether it should have been ready by now."""
    due = startup_deadline(facts, replica)
    return due is not None and facts.now >= due


def startup_deadline(facts: DeploymentFacts, replica: ReplicaFacts) -> float | None:
    """When it has to be ready, counted from its binding. None: it is ready, serves, or still waits for devices."""
    if replica.is_ready or is_serving(replica) or not is_bound(replica):
        return None
    started_at = lifted_at(replica.pods)
    return None if started_at is None else started_at + facts.spec.lifecycle.startup_timeout_seconds


def _unbound_since(replica: ReplicaFacts) -> float | None:
    if is_bound(replica) or not any(_is_committed(pod) for pod in replica.pods):
        return None
    return lifted_at(replica.pods)


def _is_committed(pod: PodFacts) -> bool:
    return (is_lifted(pod) or pod.planned_node is not None) and not pod.is_terminating and not pod.has_ended


def _bind_timeout_s(facts: DeploymentFacts, replica: ReplicaFacts) -> float:
    for option in facts.options:
        if option.pool == replica.pool:
            return option.bind_timeout_s
    return _DEFAULT_BIND_TIMEOUT_S
