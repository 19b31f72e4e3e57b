"""How fast replicas are replaced: which of the stale ones may go now, and how many new ones may come.

Level-triggered: both are worked out from what there is, never from what was done before. Ready replicas never fall
below the goal less what may be unavailable (or what was ready, if that is less); replicas, those included that end and
still hold devices, never exceed the goal and the surge. Which replicas are stale is `distribution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.model_deployment import Rollout

from hanmaru_operator.plan.distribution import Division, Opening, Openings, Stale
from hanmaru_operator.plan.groups import is_serving, nodes_of
from hanmaru_operator.plan.maintenance import Repairs, is_draining
from hanmaru_operator.types import DeploymentFacts, ReplicaFacts, Why


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a rollout may go from the goal."""

    surge: int
    unavailable: int
    is_planned: bool = False
    """Neither was given: one more where its devices are free, else one fewer, never both."""


def bounds(rollout: Rollout) -> Bounds:
    """What was asked for; a bound that is absent beside the other is 0, or 1 when the other is 0."""
    surge, unavailable = rollout.max_surge, rollout.max_unavailable
    if surge is None and unavailable is None:
        return Bounds(1, 1, is_planned=True)
    if surge is None:
        surge = 0 if unavailable else 1
    if not unavailable:
        unavailable = 0 if surge else 1
    return Bounds(surge, unavailable)


class Pace:
    """The counts of one moment, kept up to date while steps are chosen."""

    def __init__(self, facts: DeploymentFacts, division: Division, repairs: Repairs) -> None:
        self._bounds = bounds(facts.spec.rollout)
        self._goal = division.goal
        self._has_ready_first = any(stale.is_ready_first for stale in division.stale)
        self.replicas = len(division.good) + len(division.stale)
        self.good = len(division.good)
        self.ready = sum(replica.is_ready for replica in (*division.good, *(s.replica for s in division.stale)))
        self.draining = sum(is_draining(facts, replica) for replica in facts.replicas)
        self.starting = sum(_is_starting(facts, repairs, replica) for replica in division.good)

    def may_come(self, opening: Opening) -> bool:
        """Whether a replica may be made there now.

        Where there is no room, one that ends is waited for: its devices decide which pool has room next.
        """
        if self.good >= self._goal:
            return False
        if not opening.has_room and self.draining:
            return False
        return self.replicas + self.draining < self._goal + self._surge(opening)

    def _surge(self, opening: Opening) -> int:
        if opening.has_room and (self._bounds.is_planned or self._has_ready_first):
            return max(1, self._bounds.surge)
        return 0 if self._bounds.is_planned else self._bounds.surge

    def came(self) -> None:
        """A replica was made."""
        self.replicas += 1
        self.good += 1

    def goes(self, replica: ReplicaFacts) -> None:
        """A replica is deleted."""
        self.replicas -= 1
        self.ready -= replica.is_ready
        self.draining += bool(nodes_of(replica))

    def floor(self, openings: Openings) -> int:
        """Replicas that must stay ready."""
        if not self._bounds.is_planned:
            return self._goal - self._bounds.unavailable
        opening = openings.next()
        is_moving = self.starting or self.draining or (opening and opening.has_room and self.may_come(opening))
        return self._goal if is_moving else self._goal - 1

    @property
    def has_surplus(self) -> bool:
        """Whether one could go and enough would still be ready."""
        return self.ready > self._goal

    @property
    def is_still(self) -> bool:
        """Whether nothing starts and nothing ends."""
        return not self.starting and not self.draining


def choose_going(repairs: Repairs, division: Division, pace: Pace, openings: Openings) -> tuple[Stale, ...]:
    """Stale replicas that go now: all that serve nothing, then of the others as many as may."""
    going = [stale for stale in division.stale if _serves_nothing(stale, repairs)]
    for stale in going:
        pace.goes(stale.replica)
    serving = [stale for stale in division.stale if is_serving(stale.replica)]
    for stale in serving:
        if _may_go(stale, pace):
            pace.goes(stale.replica)
            going.append(stale)
    # Those whose devices their successor could use go first.
    in_place = sorted(
        (stale for stale in serving if stale not in going and not stale.is_ready_first and stale.replica.is_ready),
        key=lambda stale: not openings.admits(stale.replica.pool),
    )
    floor = pace.floor(openings) if in_place else 0
    for stale in in_place:
        if pace.ready > floor:
            pace.goes(stale.replica)
            going.append(stale)
    return tuple(going)


def choose_coming(pace: Pace, openings: Openings) -> tuple[Opening, ...]:
    """Where new replicas are made now."""
    coming: list[Opening] = []
    while (opening := openings.next()) is not None and pace.may_come(opening):
        openings.take(opening)
        pace.came()
        coming.append(opening)
    return tuple(coming)


def still_there(division: Division, going: Sequence[Stale]) -> list[ReplicaFacts]:
    """The replicas that are not told to go."""
    gone = {stale.replica.id for stale in going}
    return [*division.good, *(stale.replica for stale in division.stale if stale.replica.id not in gone)]


def _serves_nothing(stale: Stale, repairs: Repairs) -> bool:
    """Whether nobody misses it. A replica on a node that may come back is left alone, unless it is one too many."""
    if is_serving(stale.replica):
        return False
    return stale.why is Why.SCALED_DOWN or stale.replica.id not in repairs.undecided


def _may_go(stale: Stale, pace: Pace) -> bool:
    """Whether a serving one may go without a ready one being missed.

    Pods that look unready though the replica's lease is alive may pass: such replicas go one at a time.
    """
    if stale.replica.is_ready:
        return pace.has_surplus
    if stale.why is Why.SCALED_DOWN or pace.has_surplus:
        return True
    return pace.is_still and not stale.is_ready_first


def _is_starting(facts: DeploymentFacts, repairs: Repairs, replica: ReplicaFacts) -> bool:
    """Whether it is on its way to be ready: not if it waits without room."""
    return not replica.is_ready and replica.id not in facts.without_room and replica.id not in repairs.undecided
