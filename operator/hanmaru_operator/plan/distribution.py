"""How a deployment's replicas are shared out over its pools: which stay, which are misplaced, where new ones go.

Minima come first, then the pools in order of preference, within their maxima. `rollout` replaces what is stale at the
pace it may; `replicas` puts both together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from hanmaru_operator.plan.groups import is_serving
from hanmaru_operator.types import DeploymentFacts, PoolName, PoolOption, ReplicaFacts, Revision, Why

_NO_BOUND = 1 << 31


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many replicas each pool may hold in the end."""

    minimum: Mapping[PoolName, int]
    """Kept there whatever the other pools hold, as far as the replicas reach."""
    maximum: Mapping[PoolName, int]
    spare: int
    """Replicas beyond all minima; they go where there is room."""

    def admits(self, pool: PoolName, held: Mapping[PoolName, int]) -> bool:
        """Whether one more belongs into the pool, beside what the pools hold."""
        count = held.get(pool, 0)
        if count < self.minimum.get(pool, 0):
            return True
        return count < self.maximum.get(pool, 0) and self._spare_used(held) < self.spare

    def _spare_used(self, held: Mapping[PoolName, int]) -> int:
        return sum(max(0, count - self.minimum.get(pool, 0)) for pool, count in held.items())


@dataclass(frozen=True, slots=True)
class Stale:
    """A replica that is not wanted for ever: of an old revision, in the wrong pool, or one too many."""

    replica: ReplicaFacts
    why: Why
    is_ready_first: bool
    """Whether it goes only when enough others are ready, whatever may be unavailable during a rollout."""


@dataclass(frozen=True, slots=True)
class Division:
    """A deployment's replicas, sorted."""

    goal: int
    """Replicas to end with: what is asked for, less what no pool may hold."""
    quotas: Quotas
    good: tuple[ReplicaFacts, ...]
    """These stay, never more than `goal`; best first."""
    stale: tuple[Stale, ...]
    """These are replaced or simply go; those that are missed least first."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Where the next replica would go."""

    pool: PoolName
    revision: Revision
    has_room: bool


def divide(facts: DeploymentFacts, replicas: Sequence[ReplicaFacts]) -> Division:
    """Sort the replicas that are neither ending nor on nodes that are to be emptied.

    A pool that refuses new replicas keeps those that are current. Others there are replaced only as far as other pools
    may take them, and only when their successors are ready: a refusal may pass. While a rollout is paused, or some pool
    is not known yet, whatever runs is good.
    """
    best_first = sorted(replicas, key=lambda replica: removal_key(facts, replica), reverse=True)
    if facts.spec.rollout.paused or any(option.is_pending for option in facts.options):
        return _frozen(facts, best_first)
    options = {option.pool: option for option in facts.options}
    current = [replica for replica in best_first if _is_current(replica, options)]
    old = [replica for replica in best_first if not _is_current(replica, options) and _takes_more(options, replica)]
    homeless = [replica for replica in best_first if not _is_current(replica, options) and replica not in old]
    target = facts.spec.replicas
    maxima = _maxima(facts.options, current)
    movable = min(target, sum(maxima.values()))
    stranded = homeless[: target - movable]
    quotas = _quotas(facts.options, maxima, movable)
    kept, extras = _settle(facts, current, quotas, is_rolling_out=bool(old or homeless))
    stale = [Stale(replica, Why.REPLACED, is_ready_first=False) for replica in old]
    stale += [
        Stale(replica, Why.REPLACED, is_ready_first=replica.pool in options) for replica in homeless[len(stranded) :]
    ]
    stale += extras
    stale.sort(key=lambda each: removal_key(facts, each.replica))
    return Division(movable + len(stranded), quotas, (*stranded, *kept), tuple(stale))


def removal_key(facts: DeploymentFacts, replica: ReplicaFacts) -> tuple[object, ...]:
    """Order in which replicas are given up: the least missed first.

    Waiting (without room, then with), not ready, old, in the worst pool, least loaded, youngest.
    """
    index = pool_index(facts, replica.pool)
    is_old = index == len(facts.options) or facts.options[index].revision != replica.revision
    lease = replica.lease
    load = lease.running_requests + lease.queued_requests if lease else 0
    return (_state(facts, replica), not is_old, -index, load, -replica.created_at, replica.id)


def pool_index(facts: DeploymentFacts, pool: PoolName) -> int:
    """0 for the first choice; a pool that is not listed comes after all others."""
    for index, option in enumerate(facts.options):
        if option.pool == pool:
            return index
    return len(facts.options)


class Openings:
    """Pools' room while new replicas are given to them."""

    def __init__(self, facts: DeploymentFacts, division: Division) -> None:
        known = takewhile(lambda option: not option.is_pending, facts.options)
        self._options = tuple(option for option in known if option.revision is not None and not option.refusal)
        self._quotas = division.quotas
        self._held = Counter(replica.pool for replica in division.good if replica.pool in division.quotas.maximum)
        self._free = {option.pool: option.free_groups for option in self._options}

    def next(self) -> Opening | None:
        """Where one more would go: where there is room, else where it could ever fit; None: all pools are full up."""
        return self._first(self._held)

    def take(self, opening: Opening) -> None:
        """A replica goes there."""
        self._held[opening.pool] += 1
        self._free[opening.pool] -= 1

    def admits(self, pool: PoolName) -> bool:
        """Whether a successor may come into this very pool."""
        return self._quotas.admits(pool, self._held)

    def elsewhere(self, pool: PoolName) -> Opening | None:
        """A pool with room for a replica that waits in `pool` and is not kept there by its minimum."""
        if self._held[pool] <= self._quotas.minimum.get(pool, 0):
            return None
        opening = self._first(self._held - Counter([pool]), but=pool)
        return opening if opening and opening.has_room else None

    def move(self, pool: PoolName, opening: Opening) -> None:
        """A replica goes from one pool to another."""
        self._held[pool] -= 1
        self.take(opening)

    def _first(self, held: Mapping[PoolName, int], but: PoolName | None = None) -> Opening | None:
        def order(option: PoolOption) -> tuple[bool, bool, bool]:
            is_short = held.get(option.pool, 0) < self._quotas.minimum.get(option.pool, 0)
            return (self._free[option.pool] <= 0, not option.fits_empty, not is_short)

        admitting = [
            option for option in self._options if option.pool != but and self._quotas.admits(option.pool, held)
        ]
        best = min(admitting, key=order, default=None)
        if best is None or best.revision is None:
            return None
        return Opening(best.pool, best.revision, self._free[best.pool] > 0)


def _state(facts: DeploymentFacts, replica: ReplicaFacts) -> int:
    if replica.is_ready:
        return 4
    if replica.is_waiting:
        return 0 if replica.id in facts.without_room else 1
    return 3 if is_serving(replica) else 2


def _is_current(replica: ReplicaFacts, options: Mapping[PoolName, PoolOption]) -> bool:
    return replica.pool in options and options[replica.pool].revision == replica.revision


def _takes_more(options: Mapping[PoolName, PoolOption], replica: ReplicaFacts) -> bool:
    option = options.get(replica.pool)
    return option is not None and option.revision is not None and not option.refusal


def _maxima(options: Sequence[PoolOption], staying: Sequence[ReplicaFacts]) -> dict[PoolName, int]:
    """Most replicas of each pool where something can run; one that refuses new ones has what stays there, no more."""
    held = Counter(replica.pool for replica in staying)
    return {
        option.pool: min(
            _NO_BOUND if option.max_replicas is None else option.max_replicas,
            held[option.pool] if option.refusal else _NO_BOUND,
        )
        for option in options
        if option.revision is not None
    }


def _quotas(options: Sequence[PoolOption], maxima: Mapping[PoolName, int], goal: int) -> Quotas:
    minimum: dict[PoolName, int] = {}
    left = goal
    for option in options:
        if option.pool in maxima:
            minimum[option.pool] = min(option.min_replicas, maxima[option.pool], left)
            left -= minimum[option.pool]
    return Quotas(minimum, maxima, left)


def _frozen(facts: DeploymentFacts, best_first: Sequence[ReplicaFacts]) -> Division:
    """Scaling and repairs only, so the revision of what runs does not matter."""
    target = facts.spec.replicas
    good = best_first[:target]
    maxima = _maxima(facts.options, good)
    homeless = sum(replica.pool not in maxima for replica in good)
    goal = max(len(good), min(target, homeless + sum(maxima.values())))
    surplus = tuple(Stale(replica, Why.SCALED_DOWN, is_ready_first=True) for replica in reversed(best_first[target:]))
    return Division(goal, _quotas(facts.options, maxima, goal - homeless), tuple(good), surplus)


def _settle(
    facts: DeploymentFacts, best_first: Sequence[ReplicaFacts], quotas: Quotas, *, is_rolling_out: bool
) -> tuple[list[ReplicaFacts], list[Stale]]:
    """Of the replicas of the current revision: those within the quotas, and those too many somewhere."""
    kept: list[ReplicaFacts] = []
    extras: list[ReplicaFacts] = []
    held: Counter[PoolName] = Counter()
    for replica in best_first:
        if quotas.admits(replica.pool, held):
            held[replica.pool] += 1
            kept.append(replica)
        else:
            extras.append(replica)
    goal = quotas.spare + sum(quotas.minimum.values())
    if not is_rolling_out and len(extras) == 1 and len(kept) == goal:
        leaving = _mover_and_moved(facts, kept, extras[0], quotas, held)
        if leaving is not None:
            return [extras[0] if replica is leaving else replica for replica in kept], [
                Stale(leaving, Why.MOVED, is_ready_first=True)
            ]
    too_many = len(best_first) > goal
    return kept, [
        Stale(
            replica,
            Why.SCALED_DOWN if too_many and not _has_moved(facts, replica, kept) else Why.MOVED,
            is_ready_first=held[replica.pool] < quotas.maximum[replica.pool],
        )
        for replica in extras
    ]


def _mover_and_moved(
    facts: DeploymentFacts,
    kept: Sequence[ReplicaFacts],
    mover: ReplicaFacts,
    quotas: Quotas,
    held: Mapping[PoolName, int],
) -> ReplicaFacts | None:
    """The ready replica in a worse pool whose place `mover` is about to take; None: `mover` is merely one too many.

    No note is kept of a move: one replica above the goal that starts in a better pool than an older ready one is it.
    """
    has_place = not mover.is_ready and mover.id not in facts.without_room
    if not has_place or held.get(mover.pool, 0) >= quotas.maximum[mover.pool]:
        return None
    worst_first = reversed(kept)
    return next(
        (
            replica
            for replica in worst_first
            if replica.is_ready
            and pool_index(facts, replica.pool) > pool_index(facts, mover.pool)
            and replica.created_at < mover.created_at
            and held.get(replica.pool, 0) > quotas.minimum[replica.pool]
        ),
        None,
    )


def _has_moved(facts: DeploymentFacts, extra: ReplicaFacts, kept: Sequence[ReplicaFacts]) -> bool:
    """Whether a younger replica in a better pool has taken its place. Only the event's wording depends on it."""
    index = pool_index(facts, extra.pool)
    return any(
        replica.created_at > extra.created_at and pool_index(facts, replica.pool) < index and replica.is_ready
        for replica in kept
    )
