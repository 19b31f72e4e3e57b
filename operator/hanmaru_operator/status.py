"""What a deployment's or pool's status says: counts and conditions that a person can act on.

Reconciles call `deployment_status` or `pool_status`, then `merge_conditions`. Nothing here holds a time that passes,
so an unchanged world gives the same bytes and nothing is written. How far a rollout is: `progress`. Events: `events`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hanmaru_contracts.crd.schema import Condition
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolStatus, DeviceCounts
from hanmaru_contracts.crd.v1alpha1.model_deployment import (
    DeploymentPoolStatus,
    ModelDeploymentStatus,
    PlanStatus,
    ResolvedStatus,
    RevisionStatus,
)

from hanmaru_operator.plan.groups import nodes_of
from hanmaru_operator.plan.maintenance import is_overdue
from hanmaru_operator.progress import is_current, progress, progress_deadline, startup_deadlines
from hanmaru_operator.render.identity import first_pods_selector
from hanmaru_operator.types import (
    ConditionType,
    DeploymentFacts,
    NodeRoom,
    PoolFacts,
    PoolOption,
    ReplicaFacts,
    ReplicaPlan,
    Statement,
)

MAX_MESSAGE_CHARS = 1024
MAX_NAMED = 5
"""Names in one message; the others are counted."""
_MAX_ENTRIES = 16
_ALWAYS = frozenset({ConditionType.AVAILABLE, ConditionType.PROGRESSING})


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """A deployment's status, its conditions apart."""

    status: ModelDeploymentStatus
    """Without conditions."""
    statements: tuple[Statement, ...]
    look_again_at: float | None
    """When a statement may change though nothing else does."""


def deployment_status(
    facts: DeploymentFacts,
    plan: ReplicaPlan,
    given: Sequence[Statement] = (),
    *,
    plans: Sequence[PlanStatus] = (),
    resolved: ResolvedStatus | None = None,
    old_conditions: Iterable[Mapping[str, Any]] = (),
) -> DeploymentReport:
    """A deployment's status after `plan`.

    `Available` and `Progressing` are always there; the others only while they are true or unknown. `given`: what only
    the caller knows (`LicenceNotAccepted`, `NameConflict`, `NotAllowed`, `DefaultsOutdated`, `Experimental`,
    `FieldsIgnored`, further reasons to be `Degraded`). `old_conditions`: those of the object's present status, as JSON.
    """
    live = [replica for replica in facts.replicas if not replica.is_terminating]
    ready = sum(replica.is_ready for replica in live)
    old_conditions = tuple(old_conditions)
    statements = _combined(
        [
            _available(facts, ready, given),
            progress(facts, plan, old_conditions),
            *_degraded(facts, live),
            *_unschedulable(facts, live),
            *given,
        ]
    )
    status = ModelDeploymentStatus(
        observed_generation=facts.generation,
        revision=next((option.revision for option in facts.options if option.revision), ""),
        revisions=_revisions(facts, live),
        pools=_pools(facts, live),
        plan=tuple(plans[:_MAX_ENTRIES]),
        resolved=resolved or ResolvedStatus(),
        replicas=len(live),
        ready_replicas=ready,
        selector=first_pods_selector(facts.name),
    )
    looks = [progress_deadline(facts, plan, old_conditions), *startup_deadlines(facts)]
    soonest = min((at for at in looks if at is not None and at > facts.now), default=None)
    return DeploymentReport(status, statements, soonest)


def pool_status(
    pool: PoolFacts, replicas: Iterable[ReplicaFacts], given: Sequence[Statement] = ()
) -> tuple[AcceleratorPoolStatus, tuple[Statement, ...]]:
    """A pool's status without conditions, and its conditions: `Available` always, the others only while true.

    `replicas`: all in the pool, those that end included. `given`: further reasons to be `Degraded`.
    """
    groups = list(replicas)
    nodes = [room.node for room in pool.nodes]
    usable = [node for node in nodes if node.is_ready and node.is_schedulable]
    resource = _resource(pool)
    allocatable = sum(node.allocatable.get(resource, 0.0) for node in nodes)
    used = sum(max(0.0, room.node.allocatable.get(resource, 0.0) - room.free.get(resource, 0.0)) for room in pool.nodes)
    status = AcceleratorPoolStatus(
        observed_generation=pool.generation,
        nodes=len(nodes),
        ready_nodes=len(usable),
        devices=DeviceCounts(
            total=len(nodes) * pool.spec.devices.per_node, allocatable=math.floor(allocatable), used=math.ceil(used)
        ),
        groups=sum(any(pod.node or pod.planned_node for pod in replica.pods) for replica in groups),
        waiting_groups=sum(replica.is_waiting for replica in groups),
    )
    statements = [_pool_available(pool, len(usable), allocatable), *_pool_degraded(pool), *_overlap(pool), *given]
    return status, _combined(statements)


def merge_conditions(
    old: Iterable[Mapping[str, Any]], statements: Iterable[Statement], *, generation: int, now: float
) -> tuple[Condition, ...]:
    """Conditions for the status. `old`: those in the object's present one, as JSON.

    A condition keeps its time while its status is the same; one that is no longer stated goes.
    """
    before = {condition.get("type"): condition for condition in old}
    merged = []
    for statement in statements:
        status = "Unknown" if statement.is_true is None else str(statement.is_true)
        last = before.get(statement.type.value, {})
        is_same = last.get("status") == status and last.get("lastTransitionTime")
        merged.append(
            Condition(
                type=statement.type.value,
                status=status,
                reason=statement.reason,
                message=bounded(statement.message),
                observed_generation=generation,
                last_transition_time=last["lastTransitionTime"] if is_same else _rfc3339(now),
            )
        )
    return tuple(merged)


def bounded(message: str) -> str:
    """A message cut to `MAX_MESSAGE_CHARS`."""
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - MAX_NAMED
    return ", ".join(ordered[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _combined(statements: Iterable[Statement]) -> tuple[Statement, ...]:
    """One statement a type, in the types' order: the first one's reason, everyone's message."""
    by_type: dict[ConditionType, list[Statement]] = {}
    for statement in statements:
        if statement.is_true is not False or statement.type in _ALWAYS:
            by_type.setdefault(statement.type, []).append(statement)
    return tuple(
        same[0]
        if len(same) == 1
        else Statement(kind, same[0].is_true, same[0].reason, "; ".join(one.message for one in same if one.message))
        for kind in ConditionType
        if (same := by_type.get(kind))
    )


# --- deployments ---------------------------------------------------------------------------------------------------


def _available(facts: DeploymentFacts, ready: int, given: Sequence[Statement]) -> Statement:
    if not facts.may_run:
        if facts.spec.lifecycle.stopped:
            return Statement(ConditionType.AVAILABLE, False, "Stopped", "lifecycle.stopped is true: no replica runs")
        refusals = [one.type.value for one in given if one.is_true and one.type not in _ALWAYS]
        message = f"no replica runs: see {', '.join(refusals)}" if refusals else "no replica runs"
        return Statement(ConditionType.AVAILABLE, False, "Refused", message)
    message = f"{ready} of {facts.spec.replicas} replicas are ready"
    if ready >= facts.spec.replicas:
        return Statement(ConditionType.AVAILABLE, True, "AllReplicasReady", message)
    return Statement(ConditionType.AVAILABLE, False, "MinimumUnavailable", message)


def _degraded(facts: DeploymentFacts, live: Sequence[ReplicaFacts]) -> Iterable[Statement]:
    if not facts.may_run:
        return
    overdue = [replica.id for replica in live if is_overdue(facts, replica)]
    if overdue:
        limit_s = facts.spec.lifecycle.startup_timeout_seconds
        message = f"not ready {limit_s} s after they were placed: {listed(overdue)}; see their pods' logs"
        yield Statement(ConditionType.DEGRADED, True, "StartupTimeout", message)
    troubled = {
        f"{pod.name} ({pod.trouble})"
        for replica in live
        for pod in replica.pods
        if pod.trouble and not pod.is_terminating
    }
    if troubled:
        yield Statement(ConditionType.DEGRADED, True, "PodsDoNotStart", f"pods do not start: {listed(troubled)}")
    stricken = sorted({node for replica in live for node in nodes_of(replica) & facts.unhealthy_nodes})
    if stricken:
        message = f"replicas run on nodes that are not ready: {listed(stricken)}"
        yield Statement(ConditionType.DEGRADED, True, "NodeNotReady", message)


def _unschedulable(facts: DeploymentFacts, live: Sequence[ReplicaFacts]) -> Iterable[Statement]:
    if not facts.may_run or not facts.spec.replicas:
        return
    runnable = [option for option in facts.options if option.revision is not None and not option.refusal]
    if any(option.is_pending for option in facts.options):
        return
    if not runnable:
        if len(live) == facts.spec.replicas and all(is_current(facts, replica) for replica in live):
            return
        yield _unschedulable_because("NoPoolFits", "", facts.options, live)
    elif any(replica.id in facts.without_room for replica in live):
        shapes = {_shape(option) for option in runnable}
        needs = f"needs {shapes.pop()}" if len(shapes) == 1 else ""
        yield _unschedulable_because("DevicesMissing", needs, facts.options, live)
    elif len(live) < facts.spec.replicas and all(option.max_replicas is not None for option in runnable):
        most = sum(option.max_replicas or 0 for option in runnable)
        if most < facts.spec.replicas:
            needs = f"{facts.spec.replicas} replicas are wanted and the pools' maxReplicas allow {most}"
            yield _unschedulable_because("MaxReplicas", needs, facts.options, live)


def _unschedulable_because(
    reason: str, needs: str, options: Sequence[PoolOption], live: Sequence[ReplicaFacts]
) -> Statement:
    held = Counter(replica.pool for replica in live if not replica.is_waiting)
    by_pool = [
        f"pool {option.pool}{'' if needs or option.revision is None else f' needs {_shape(option)}'}: "
        + _verdict(option, held[option.pool])
        for option in options
    ]
    return Statement(ConditionType.UNSCHEDULABLE, True, reason, "; ".join([needs, *by_pool] if needs else by_pool))


def _shape(option: PoolOption) -> str:
    """Such as `2 x 8 nvidia.com/gpu in one topology.kubernetes.io/rack`."""
    devices = f"{option.group_size} x {option.pod_requests.get(option.resource, 0.0):g} {option.resource}"
    return f"{devices} in one {option.domain_key}" if option.domain_key and option.group_size > 1 else devices


def _verdict(option: PoolOption, held: int) -> str:
    if option.revision is None or option.refusal:
        return option.refusal or "cannot run the model"
    if option.max_replicas is not None and held >= option.max_replicas:
        return f"holds its maxReplicas, {option.max_replicas}"
    if option.free_groups > 0:
        return f"room for {option.free_groups}"
    return option.no_room or f"{option.devices_missing} missing"


def _revisions(facts: DeploymentFacts, live: Sequence[ReplicaFacts]) -> tuple[RevisionStatus, ...]:
    """Replicas by revision, the current ones first; each has its ready replicas' share of the route's weight."""
    replicas = Counter(replica.revision for replica in live)
    ready = Counter(replica.revision for replica in live if replica.is_ready)
    current = [option.revision for option in facts.options if option.revision is not None]
    others = sorted(replicas.keys() - set(current), key=lambda revision: (-replicas[revision], revision))
    shown = [*(revision for revision in dict.fromkeys(current) if replicas[revision]), *others][:_MAX_ENTRIES]
    total, weight = ready.total(), facts.spec.route.weight
    rows, before = [], 0
    for revision in shown:
        after = before + ready[revision]
        # Rounding sums instead of shares keeps the total exact.
        share = weight * after // total - weight * before // total if total else 0
        rows.append(RevisionStatus(hash=revision, replicas=replicas[revision], ready=ready[revision], weight=share))
        before = after
    return tuple(rows)


def _pools(facts: DeploymentFacts, live: Sequence[ReplicaFacts]) -> tuple[DeploymentPoolStatus, ...]:
    names = dict.fromkeys([*(option.pool for option in facts.options), *sorted(replica.pool for replica in live)])
    rows = []
    for name in list(names)[:_MAX_ENTRIES]:
        here = [replica for replica in live if replica.pool == name]
        rows.append(
            DeploymentPoolStatus(
                name=name,
                replicas=len(here),
                ready=sum(replica.is_ready for replica in here),
                waiting=sum(replica.is_waiting for replica in here),
            )
        )
    return tuple(rows)


# --- pools ---------------------------------------------------------------------------------------------------------


def _pool_available(pool: PoolFacts, usable: int, allocatable: float) -> Statement:
    nodes, resource = len(pool.nodes), _resource(pool)
    if not nodes:
        message = "no node matches nodes.selectorTerms, or an older pool has them all"
        return Statement(ConditionType.AVAILABLE, False, "NoNodes", message)
    if not usable:
        message = f"none of {nodes} nodes is ready and schedulable"
        return Statement(ConditionType.AVAILABLE, False, "NoReadyNodes", message)
    if allocatable <= 0:
        message = f"no node offers {resource}: is its device plugin running?"
        return Statement(ConditionType.AVAILABLE, False, "NoDevices", message)
    return Statement(ConditionType.AVAILABLE, True, "NodesReady", f"{usable} of {nodes} nodes are ready")


def _pool_degraded(pool: PoolFacts) -> Iterable[Statement]:
    resource, per_node = _resource(pool), pool.spec.devices.per_node
    not_ready = [room.node.name for room in pool.nodes if not room.node.is_ready]
    if not_ready:
        yield Statement(ConditionType.DEGRADED, True, "NodesNotReady", f"nodes not ready: {listed(not_ready)}")
    short = [_offered(room, resource) for room in pool.nodes if _falls_short(room, resource, per_node)]
    if short:
        message = f"nodes that offer fewer than {per_node} {resource}: {listed(short)}"
        yield Statement(ConditionType.DEGRADED, True, "DevicesMissing", message)


def _falls_short(room: NodeRoom, resource: str, per_node: int) -> bool:
    return room.node.is_ready and room.node.allocatable.get(resource, 0.0) < per_node


def _offered(room: NodeRoom, resource: str) -> str:
    return f"{room.node.name} ({room.node.allocatable.get(resource, 0.0):g})"


def _overlap(pool: PoolFacts) -> Iterable[Statement]:
    if pool.overlapping:
        owners = listed(set(pool.overlapping.values()))
        message = f"nodes that belong to an older pool ({owners}): {listed(pool.overlapping)}"
        yield Statement(ConditionType.POOL_OVERLAP, True, "OlderPoolHasNodes", message)


def _resource(pool: PoolFacts) -> str:
    return pool.spec.devices.resource.name if pool.spec.devices.resource else ""


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
