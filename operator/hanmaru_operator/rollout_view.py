"""Where a ModelDeployment's rollout stands, read off the object alone: done, failed, or what it waits for. Pure.

`hanmaru rollout status` asks at each look, and decides itself how long it waits. The words are those of the conditions
that `status` and `progress` write; nothing is worked out a second time here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec
from hanmaru_contracts.crd.schema import Condition, Natural, Schema
from hanmaru_contracts.crd.v1alpha1.model_deployment import (
    DeploymentPoolStatus,
    Lifecycle,
    ModelDeploymentStatus,
)
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT

from hanmaru_operator.types import ConditionType, Manifest, ProgressReason, UnschedulableReason

SPEC_NOT_UNDERSTOOD = "SpecNotUnderstood"
"""Reason of `Degraded` when the operator is too old for the spec; then it says nothing else of the generation."""
_TEXT_CHARS = 1024
"""What a status holds of an annotation."""


class Outcome(StrEnum):
    """Where a rollout stands."""

    COMPLETE = "Complete"
    FAILED = "Failed"
    """It goes no further until somebody changes something."""
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    NOT_OBSERVED = "NotObserved"
    """The operator has not looked at the last change yet."""


class PoolView(msgspec.Struct, frozen=True, rename="camel"):
    """Replicas in one pool."""

    name: str
    replicas: int
    ready: int
    waiting: int
    """For devices."""


class RolloutView(msgspec.Struct, frozen=True, rename="camel"):
    """One look at a rollout; as JSON it is what `-o json` prints."""

    name: str
    namespace: str
    outcome: Outcome
    reason: str
    """One word for programs: a condition's reason or type."""
    message: str
    """For people: how far it is, why it failed, what to do."""
    revision: str
    """The newest one; empty: none yet."""
    desired: int
    replicas: int
    ready: int
    pools: tuple[PoolView, ...]
    generation: int
    observed_generation: int

    @property
    def line(self) -> str:
        """All of it for a terminal. Pools without a replica are left out."""
        revision = f"revision {self.revision}: " if self.revision else ""
        pools = ", ".join(_pool_words(pool) for pool in self.pools if pool.replicas)
        return revision + self.message + (f" [{pools}]" if pools else "")


class _Wanted(Schema):
    """The part of a spec that a rollout is measured by."""

    replicas: Natural = 1
    lifecycle: Lifecycle = Lifecycle()


class _Look:
    """One object, taken apart."""

    def __init__(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        spec = _Wanted.model_validate(manifest.get("spec") or {})
        self.name: str = metadata["name"]
        self.namespace: str = metadata["namespace"]
        self.generation: int = metadata.get("generation", 0)
        self.restarted_at = str((metadata.get("annotations") or {}).get(ANNOTATION_RESTARTED_AT, ""))[:_TEXT_CHARS]
        self.desired = 0 if spec.lifecycle.stopped else spec.replicas
        self.status = ModelDeploymentStatus.model_validate(manifest.get("status") or {})
        self.conditions: Mapping[str, Condition] = {each.type: each for each in self.status.conditions}

    def true(self, kind: ConditionType) -> Condition | None:
        """The condition, if it holds."""
        condition = self.conditions.get(kind.value)
        return condition if condition is not None and condition.status == "True" else None

    def view(self, outcome: Outcome, reason: str, message: str) -> RolloutView:
        """What is said of it."""
        status = self.status
        return RolloutView(
            name=self.name,
            namespace=self.namespace,
            outcome=outcome,
            reason=reason,
            message=message,
            revision=status.revision,
            desired=self.desired,
            replicas=status.replicas,
            ready=status.ready_replicas,
            pools=tuple(_pool(pool) for pool in status.pools),
            generation=self.generation,
            observed_generation=status.observed_generation,
        )


def view_rollout(manifest: Manifest) -> RolloutView:
    """Where the rollout of a ModelDeployment stands. Raises pydantic's ValidationError for a status of a newer API."""
    look = _Look(manifest)
    unread = look.true(ConditionType.DEGRADED)
    if unread is not None and unread.reason == SPEC_NOT_UNDERSTOOD and unread.observed_generation >= look.generation:
        return _failed(look, unread)
    behind = _behind(look)
    if behind:
        return look.view(Outcome.NOT_OBSERVED, Outcome.NOT_OBSERVED.value, behind)
    refusal = _refusal(look)
    if refusal is not None:
        return _failed(look, refusal)
    return _progress(look)


def _behind(look: _Look) -> str:
    """What the operator has not looked at yet; empty: its status is of the object as it is."""
    seen = look.status
    if seen.observed_generation < look.generation:
        return f"the operator has seen generation {seen.observed_generation} of {look.generation}"
    if seen.restarted_at != look.restarted_at:
        return f"the operator has not seen the last restart ({look.restarted_at or 'taken back'})"
    return ""


def _refusal(look: _Look) -> Condition | None:
    """The condition that lets nothing of it run, if there is one."""
    if not look.desired:
        return None
    for kind in (ConditionType.LICENCE_NOT_ACCEPTED, ConditionType.NAME_CONFLICT):
        if (refusal := look.true(kind)) is not None:
            return refusal
    lacking = look.true(ConditionType.UNSCHEDULABLE)
    if lacking is not None and lacking.reason == UnschedulableReason.NO_POOL_FITS:
        return lacking
    # One pool of several may be refused, and the rollout goes on in the others.
    if not any(plan.fits for plan in look.status.plan):
        return look.true(ConditionType.NOT_ALLOWED)
    return None


def _failed(look: _Look, why: Condition) -> RolloutView:
    return look.view(Outcome.FAILED, why.type, f"{why.type}: {why.message or why.reason}")


def _progress(look: _Look) -> RolloutView:
    progressing = look.conditions.get(ConditionType.PROGRESSING.value)
    reason = progressing.reason if progressing else ""
    message = (progressing.message if progressing else "") or _counts(look)
    available = look.true(ConditionType.AVAILABLE) is not None
    match reason:
        case ProgressReason.STOPPED if not look.status.replicas:
            return look.view(Outcome.COMPLETE, reason, "stopped, and no replica is left")
        case ProgressReason.ROLLOUT_COMPLETE if available or not look.desired:
            return look.view(Outcome.COMPLETE, reason, f"rolled out, {_counts(look)}")
        case ProgressReason.PAUSED if available and _runs_newest(look):
            return look.view(Outcome.COMPLETE, reason, f"rolled out and paused, {_counts(look)}")
        case ProgressReason.PAUSED:
            return look.view(Outcome.PAUSED, reason, f"paused, {_counts(look)}; {_with_remarks(look, message)}")
        case ProgressReason.DEADLINE_EXCEEDED | ProgressReason.REFUSED:
            return look.view(Outcome.FAILED, reason, f"{reason}: {_with_remarks(look, message)}")
        case ProgressReason.ROLLOUT_COMPLETE:
            return look.view(Outcome.PROGRESSING, reason, _with_remarks(look, _unavailable(look)))
    return look.view(Outcome.PROGRESSING, reason, _with_remarks(look, message))


def _runs_newest(look: _Look) -> bool:
    """Whether all replicas surely are of the newest revision. With two pools, each with its own, nobody can say."""
    status = look.status
    return status.ready_replicas == look.desired and all(each.hash == status.revision for each in status.revisions)


def _counts(look: _Look) -> str:
    return f"{look.status.ready_replicas} of {look.desired} replicas are ready"


def _unavailable(look: _Look) -> str:
    available = look.conditions.get(ConditionType.AVAILABLE.value)
    return (available.message if available else "") or _counts(look)


def _with_remarks(look: _Look, message: str) -> str:
    """With what keeps it from getting on, if the operator says so."""
    kinds = (ConditionType.UNSCHEDULABLE, ConditionType.DEGRADED)
    remarks = [f"{kind.value}: {holds.message or holds.reason}" for kind in kinds if (holds := look.true(kind))]
    return "; ".join([message, *remarks])


def _pool(pool: DeploymentPoolStatus) -> PoolView:
    return PoolView(pool.name, pool.replicas, pool.ready, pool.waiting)


def _pool_words(pool: PoolView) -> str:
    waiting = f", {pool.waiting} waiting for devices" if pool.waiting else ""
    return f"{pool.name} {pool.ready}/{pool.replicas} ready{waiting}"
