"""What to do about a deployment's replicas now: make, delete, restart.

`reconcile` calls `plan_replicas` whenever anything changed. It looks at everything again and remembers nothing, so it
may run twice, or after a crash at any line; applied again and again to an unchanged world it ends with no step.
Gates are `lifts`, what is rendered for a replica is `render`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hanmaru_contracts.names import ReplicaId

from hanmaru_operator.plan.distribution import Division, Openings, divide, pool_index, removal_key
from hanmaru_operator.plan.maintenance import Repairs, is_overdue, keep_for_now, plan_repairs, startup_deadline
from hanmaru_operator.plan.rollout import Pace, choose_coming, choose_going, still_there
from hanmaru_operator.types import (
    CreateReplica,
    DeleteReplica,
    DeploymentFacts,
    PoolOption,
    ReplicaPlan,
    ReplicaStep,
    RestartGroup,
    Why,
)

RETURN_AFTER_S = 300.0
"""A better pool must have had room for so long before a replica returns to it, or each short gap would move 474 GB."""


def plan_replicas(
    facts: DeploymentFacts, new_id: Callable[[], ReplicaId], *, return_after_s: float = RETURN_AFTER_S
) -> ReplicaPlan:
    """The next steps, and when to look again. `new_id` gives a name no replica of the deployment has or had.

    Replicas are equal to the facts only once they were applied: the caller must not plan on facts that lack its own
    last steps, or it makes and deletes too many.
    """
    live = [replica for replica in facts.replicas if not replica.is_terminating]
    if not facts.may_run:
        return ReplicaPlan(tuple(DeleteReplica(replica.id, Why.STOPPED) for replica in live))
    repairs = plan_repairs(facts, live)
    division = divide(facts, repairs.staying)
    openings, pace = Openings(facts, division), Pace(facts, division, repairs)
    going = choose_going(repairs, division, pace, openings)
    steps: list[ReplicaStep] = [DeleteReplica(replica.id, Why.NODE_LOST) for replica in repairs.lost]
    steps += [DeleteReplica(stale.replica.id, stale.why) for stale in going]
    steps += _fall_backs(facts, division, openings, new_id)
    coming = choose_coming(pace, openings)
    steps += [CreateReplica(new_id(), opening.pool, opening.revision) for opening in coming]
    rest = still_there(division, going)
    looks = [repairs.look_again_at]
    if repairs.leaving:
        kept = keep_for_now(facts, repairs, rest, sum(opening.has_room for opening in coming))
        steps += _clear_nodes(facts, repairs, kept)
        looks += [startup_deadline(facts, replica) for replica in rest if not is_overdue(facts, replica)]
    if not steps and not repairs.leaving and pace.is_still:
        home, look = _return_home(facts, division, new_id, return_after_s)
        steps += home
        looks.append(look)
    steps += _restarts(repairs, steps)
    return ReplicaPlan(tuple(steps), min((at for at in looks if at is not None), default=None))


def _fall_backs(
    facts: DeploymentFacts, division: Division, openings: Openings, new_id: Callable[[], ReplicaId]
) -> Iterable[ReplicaStep]:
    """Replicas that wait in a full pool go where there is room, the oldest first."""
    waiting = [replica for replica in division.good if replica.is_waiting and replica.id in facts.without_room]
    for replica in sorted(waiting, key=lambda replica: (replica.created_at, replica.id)):
        opening = openings.elsewhere(replica.pool)
        if opening is not None:
            openings.move(replica.pool, opening)
            yield DeleteReplica(replica.id, Why.FELL_BACK)
            yield CreateReplica(new_id(), opening.pool, opening.revision)


def _clear_nodes(facts: DeploymentFacts, repairs: Repairs, kept: int) -> Iterable[ReplicaStep]:
    """Delete the replicas on nodes that are to be emptied, but for the best `kept` ones that serve."""
    best_first = sorted(repairs.leaving, key=lambda replica: removal_key(facts, replica), reverse=True)
    staying = [replica for replica in best_first if replica.is_ready][:kept]
    return (DeleteReplica(replica.id, Why.NODE_CORDONED) for replica in repairs.leaving if replica not in staying)


def _return_home(
    facts: DeploymentFacts, division: Division, new_id: Callable[[], ReplicaId], return_after_s: float
) -> tuple[list[ReplicaStep], float | None]:
    """One replica more in a better pool that has had room long enough; the worse one goes when it is ready."""
    since = facts.preferred_free_since
    is_complete = not division.stale and len(division.good) == division.goal
    if since is None or facts.spec.rollout.paused or not is_complete:
        return [], None
    if not all(replica.is_ready for replica in division.good):
        return [], None
    better = _better_pool(facts, division)
    if better is None or better.revision is None:
        return [], None
    if facts.now - since < return_after_s:
        return [], min(since, facts.now) + return_after_s
    return [CreateReplica(new_id(), better.pool, better.revision)], None


def _better_pool(facts: DeploymentFacts, division: Division) -> PoolOption | None:
    """The best pool with room that is better than that of some replica which no minimum keeps."""
    held = [replica.pool for replica in division.good]
    movable = [
        pool_index(facts, replica.pool)
        for replica in division.good
        if held.count(replica.pool) > division.quotas.minimum.get(replica.pool, held.count(replica.pool))
    ]
    for option in facts.options[: max(movable, default=0)]:
        if option.is_pending:
            return None
        if option.refusal:
            continue
        if option.free_groups > 0 and held.count(option.pool) < division.quotas.maximum.get(option.pool, 0):
            return option
    return None


def _restarts(repairs: Repairs, steps: Sequence[ReplicaStep]) -> list[ReplicaStep]:
    deleted = {step.id for step in steps if isinstance(step, DeleteReplica)}
    return [RestartGroup(replica.id, why) for replica, why in repairs.restarts if replica.id not in deleted]
