"""How far a deployment's rollout is, and whether it still moves: the condition `Progressing`. For `status`.

When it last moved is read off the objects (when replicas were made, groups placed, pods ready or told to end) and off
the conditions' times: no note is kept of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from hanmaru_operator.plan.groups import is_bound, lifted_at
from hanmaru_operator.plan.maintenance import is_draining, startup_deadline
from hanmaru_operator.types import (
    ConditionType,
    CreateReplica,
    DeleteReplica,
    DeploymentFacts,
    ReplicaFacts,
    ReplicaPlan,
    Statement,
)

_MOVING = frozenset({ConditionType.AVAILABLE.value, ConditionType.UNSCHEDULABLE.value})


def progress(facts: DeploymentFacts, plan: ReplicaPlan, old_conditions: Iterable[Mapping[str, Any]]) -> Statement:
    """The condition `Progressing`: True while it moves and when it is complete, False when it does not get on."""
    live = [replica for replica in facts.replicas if not replica.is_terminating]
    if not facts.may_run:
        if facts.spec.lifecycle.stopped:
            return _progressing(True, "Stopped", f"{len(live)} replicas are left" if live else "no replica is left")
        return _progressing(False, "Refused", "the deployment may not run")
    old = sum(not is_current(facts, replica) for replica in live)
    if facts.spec.rollout.paused:
        message = f"rollout.paused is true; {old} of {len(live)} replicas run an old revision"
        return _progressing(None, "Paused", message)
    if is_complete(facts):
        return _progressing(True, "RolloutComplete", f"{len(live)} replicas run the current revision")
    if any(option.is_pending for option in facts.options):
        return _progressing(True, "ReadingModel", "what the pools can run is being found out")
    reason, message = _doing(facts, live, old)
    deadline = progress_deadline(facts, plan, old_conditions)
    if deadline is not None and facts.now >= deadline:
        limit_s = facts.spec.rollout.progress_deadline_seconds
        return _progressing(False, "DeadlineExceeded", f"no progress within {limit_s} s: {message}")
    return _progressing(True, reason, message)


def is_complete(facts: DeploymentFacts) -> bool:
    """Whether everything is as it is wanted."""
    live = [replica for replica in facts.replicas if not replica.is_terminating]
    return (
        len(live) == facts.spec.replicas
        and all(replica.is_ready and is_current(facts, replica) for replica in live)
        and not any(is_draining(facts, replica) for replica in facts.replicas)
    )


def progress_deadline(
    facts: DeploymentFacts, plan: ReplicaPlan, old_conditions: Iterable[Mapping[str, Any]]
) -> float | None:
    """When a rollout that does not move counts as stuck. None: there is nothing to wait for."""
    if not facts.may_run or facts.spec.rollout.paused or is_complete(facts):
        return None
    moves = [facts.now] if any(isinstance(step, CreateReplica | DeleteReplica) for step in plan.steps) else []
    moves += [at for replica in facts.replicas for at in _moves(replica)]
    moves += [at for condition in old_conditions if (at := _moved_at(condition)) is not None]
    # A clock that was ahead must not stop the rollout from ever being late.
    last = max((min(at, facts.now) for at in moves), default=facts.now)
    return last + facts.spec.rollout.progress_deadline_seconds


def startup_deadlines(facts: DeploymentFacts) -> list[float]:
    """When replicas that start now become overdue."""
    if not facts.may_run:
        return []
    due = [startup_deadline(facts, replica) for replica in facts.replicas if not replica.is_terminating]
    return [at for at in due if at is not None and at > facts.now]


def _doing(facts: DeploymentFacts, live: list[ReplicaFacts], old: int) -> tuple[str, str]:
    ready = sum(replica.is_ready for replica in live)
    waiting = sum(replica.id in facts.without_room for replica in live)
    counts = f"{ready} of {facts.spec.replicas} replicas are ready"
    if waiting:
        return "WaitingForDevices", f"{counts}; {waiting} wait for devices"
    if old or len(live) > facts.spec.replicas:
        return "ReplacingReplicas", f"{counts}; {len(live) - old} of {len(live)} run the current revision"
    draining = sum(is_draining(facts, replica) for replica in facts.replicas)
    return "StartingReplicas", f"{counts}; {draining} drain" if draining else counts


def is_current(facts: DeploymentFacts, replica: ReplicaFacts) -> bool:
    """Whether it runs what a new replica in its pool would run."""
    return any(option.pool == replica.pool and option.revision == replica.revision for option in facts.options)


def _moves(replica: ReplicaFacts) -> Iterable[float]:
    """Times at which the replica got on. Lifting counts once the group is bound: a group can be lifted in vain."""
    yield replica.created_at
    if is_bound(replica) and (placed_at := lifted_at(replica.pods)) is not None:
        yield placed_at
    for pod in replica.pods:
        if pod.ready_at is not None:
            yield pod.ready_at
        if replica.is_terminating and pod.ends_by is not None:
            yield pod.ends_by


def _moved_at(condition: Mapping[str, Any]) -> float | None:
    """A condition's change, if it tells of movement; that of a `Progressing` which is not True tells of none."""
    kind = condition.get("type")
    is_telling = kind in _MOVING or (kind == ConditionType.PROGRESSING.value and condition.get("status") == "True")
    if not is_telling:
        return None
    try:
        return datetime.fromisoformat(str(condition.get("lastTransitionTime"))).timestamp()
    except ValueError:
        return None


def _progressing(is_true: bool | None, reason: str, message: str) -> Statement:
    return Statement(ConditionType.PROGRESSING, is_true, reason, message)
