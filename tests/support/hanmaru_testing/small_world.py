"""One deployment on a few pools, with everything around the operator's decisions played as Kubernetes does it.

Pods are made gated, bind where they are sent, become ready after a while, drain when deleted; nodes fail and are
cordoned; other people's pods take room. The decisions are the real ones. Time passes only in `round`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from hanmaru_contracts.names import ReplicaId
from hanmaru_operator.plan.groups import is_lifted
from hanmaru_operator.plan.lifts import LiftPlan, group_of, plan_lifts
from hanmaru_operator.plan.placement import GroupShape, offer
from hanmaru_operator.plan.replicas import plan_replicas
from hanmaru_operator.plan.room import room, use_by_node
from hanmaru_operator.types import (
    CreateReplica,
    DeleteReplica,
    DeploymentFacts,
    LeaseFacts,
    NodeFacts,
    NodeName,
    PodFacts,
    PoolFacts,
    PoolName,
    PoolOption,
    ReplicaFacts,
    ReplicaPlan,
    Revision,
)

from hanmaru_testing.operator_facts import GPU, NOW, RACK, bound_pod, deployment_spec, node, pod, pool_spec

START_S, DRAIN_S, LEASE_S = 20.0, 15.0, 5.0


@dataclass
class Pool:
    nodes: int
    size: int = 1
    racks: int = 1
    revision: str | None = "1"
    minimum: int = 0
    maximum: int | None = None
    refusal: str = ""
    is_pending: bool = False


@dataclass
class World:
    pools: dict[str, Pool]
    replicas: int = 1
    rollout: dict[str, Any] = field(default_factory=dict)
    may_run: bool = True
    now: float = NOW
    skew_s: float = 0.0
    """The operator's clock is ahead of the API server's by this."""
    redis_answers: bool = True
    bad_revisions: set[str] = field(default_factory=set)
    lost: dict[str, float] = field(default_factory=dict)
    """Nodes that are cut off, and since when."""
    cordoned: set[str] = field(default_factory=set)
    foreign: list[PodFacts] = field(default_factory=list)
    groups: dict[ReplicaId, ReplicaFacts] = field(default_factory=dict)
    since: float | None = None
    """Since when a better pool has had room."""
    steps_taken: int = 0
    _ids: Iterator[int] = field(default_factory=count)
    _lifted: dict[str, float] = field(default_factory=dict)

    # --- what the operator sees ---

    def node_names(self, pool: str) -> list[str]:
        return [f"{pool}{index}" for index in range(self.pools[pool].nodes)]

    def _nodes(self, pool: str) -> list[NodeFacts]:
        racks = self.pools[pool].racks
        return [
            node(
                name,
                rack=f"{pool}-r{index % racks}",
                is_ready=name not in self.lost,
                is_schedulable=name not in self.cordoned,
            )
            for index, name in enumerate(self.node_names(pool))
        ]

    def pool_facts(self, name: str) -> PoolFacts:
        pods = [each for group in self.groups.values() for each in group.pods] + self.foreign
        rooms = room(self._nodes(name), use_by_node(pods))
        return PoolFacts(PoolName(name), name, 1, NOW, pool_spec(RACK), rooms)

    def lift_plan(self, name: str) -> LiftPlan:
        waiting = map(group_of, (group for group in self.groups.values() if group.pool == name))
        return plan_lifts(self.pool_facts(name), filter(None, waiting), self.now + self.skew_s)

    def _option(self, name: str, plan: LiftPlan) -> PoolOption:
        entry = self.pools[name]
        shape = GroupShape({GPU: 8.0}, entry.size, GPU, RACK)
        left = offer(shape, plan.rooms, held_by=plan.held_by)
        return PoolOption(
            PoolName(name),
            entry.minimum,
            entry.maximum,
            Revision(entry.revision) if entry.revision else None,
            refusal=entry.refusal,
            is_pending=entry.is_pending,
            pod_requests=shape.requests,
            group_size=entry.size,
            free_groups=0 if entry.refusal else left.free_groups,
            devices_missing=left.devices_missing,
            no_room=left.no_room,
            fits_empty=left.fits_empty and not entry.refusal,
            resource=GPU,
            domain_key=RACK,
        )

    def facts(self) -> DeploymentFacts:
        plans = {name: self.lift_plan(name) for name in self.pools}
        options = tuple(self._option(name, plan) for name, plan in plans.items())
        self._note_preferred(options)
        return DeploymentFacts(
            namespace="ns",
            name="m",
            uid="uid-m",
            generation=1,
            spec=deployment_spec(self.replicas, list(self.pools), rollout=self.rollout),
            options=options,
            replicas=tuple(replace(group, lease=self._lease(group)) for group in self.groups.values()),
            may_run=self.may_run,
            unhealthy_nodes=frozenset(map(NodeName, self.lost)),
            cordoned_nodes=frozenset(map(NodeName, self.cordoned)),
            preferred_free_since=self.since,
            now=self.now + self.skew_s,
            without_room=frozenset(replica for plan in plans.values() for _, replica in plan.without_room),
        )

    def _note_preferred(self, options: tuple[PoolOption, ...]) -> None:
        worst = max((list(self.pools).index(g.pool) for g in self.live if g.pool in self.pools), default=0)
        if not any(each.free_groups for each in options[:worst]):
            self.since = None
        elif self.since is None:
            self.since = self.now + self.skew_s

    def _lease(self, group: ReplicaFacts) -> LeaseFacts | None:
        if not self.redis_answers or group.lease is None:
            return None
        cut = [self.lost[each.node] for each in group.pods if each.node in self.lost]
        is_there = bool(group.pods) and all(each.node and not each.has_ended for each in group.pods)
        return LeaseFacts(is_alive=is_there and all(self.now - at < LEASE_S for at in cut))

    @property
    def live(self) -> list[ReplicaFacts]:
        return [group for group in self.groups.values() if not group.is_terminating]

    @property
    def ready(self) -> int:
        return sum(group.is_ready for group in self.live)

    @property
    def holding(self) -> int:
        """Replicas with a pod on a node that works."""
        gone = self.lost.keys() | self.cordoned
        return sum(any(each.node and each.node not in gone for each in group.pods) for group in self.groups.values())

    # --- what happens ---

    def round(self, dt_s: float = 10.0, stolen: tuple[str, ...] = ()) -> ReplicaPlan:
        """The operator looks and acts once, others take the nodes `stolen`, then pods bind and time passes."""
        plan = plan_replicas(self.facts(), lambda: ReplicaId(f"r{next(self._ids)}"))
        self.apply(plan)
        for name in self.pools:
            for lift in self.lift_plan(name).lifts:
                self._lifted[lift.uid] = self.now
                lifted = {"gate_lifted_at": self.now + self.skew_s, "lifted_with": lift.lifted_with}
                self._change(lift.uid, gates=(), planned_node=lift.node, **lifted)
        for node_name in stolen:
            self.take(node_name)
        self.now += dt_s
        self._kubernetes()
        return plan

    def apply(self, plan: ReplicaPlan) -> None:
        for step in plan.steps:
            self.steps_taken += 1
            if isinstance(step, CreateReplica):
                size = self.pools[step.pool].size
                self.groups[step.id] = ReplicaFacts(
                    step.id, "ns", "m", f"uid-{step.id}", step.pool, step.revision, size, self.now, False, (), None
                )
                continue
            group = self.groups[step.id]
            ended = tuple(self._ending(each) for each in group.pods)
            self.groups[step.id] = replace(
                group, pods=ended, is_terminating=group.is_terminating or isinstance(step, DeleteReplica)
            )
        self._sweep()

    def settle(self, rounds: int = 200, dt_s: float = 10.0) -> int:
        """Rounds until nothing was decided for longer than any timeout takes; fails when that does not come."""
        quiet = 0
        for number in range(rounds):
            quiet = 0 if self.round(dt_s).steps else quiet + 1
            if quiet * dt_s > 700:
                return number - quiet
        raise AssertionError(f"no rest after {rounds} rounds: {self.summary()}")

    def evict(self, uid: str) -> None:
        self._change(uid, is_terminating=True, is_evicted=True, is_ready=False, ends_by=self.now + DRAIN_S)

    def forget(self, uid: str) -> None:
        """A pod is deleted by force."""
        for group in self.groups.values():
            self.groups[group.id] = replace(group, pods=tuple(each for each in group.pods if each.uid != uid))

    def take(self, name: str) -> None:
        """A foreign pod takes a whole node."""
        self.foreign.append(bound_pod(f"foreign-{name}", name, namespace="other"))

    def summary(self) -> list[str]:
        return [
            f"{g.id}@{g.pool}/{g.revision} {'ending' if g.is_terminating else 'ready' if g.is_ready else '...'} "
            f"{[each.node or each.planned_node or each.gates for each in g.pods]}"
            for g in self.groups.values()
        ]

    def _change(self, uid: str, **changes: Any) -> None:
        for group in self.groups.values():
            pods = tuple(replace(each, **changes) if each.uid == uid else each for each in group.pods)
            self.groups[group.id] = replace(group, pods=pods)

    def _ending(self, each: PodFacts) -> PodFacts:
        if each.is_terminating:
            return each
        return replace(each, is_terminating=True, is_ready=False, ends_by=self.now + (DRAIN_S if each.node else 0.0))

    def _kubernetes(self) -> None:
        self._sweep()
        for group in list(self.groups.values()):
            pods = [*group.pods, *self._made(group)]
            pods = [self._bound(each) for each in pods]
            is_whole = len(pods) == group.size and all(each.node and not each.is_terminating for each in pods)
            started = is_whole and self.now >= max(self._lifted[each.uid] for each in pods) + START_S
            is_good = started and group.revision not in self.bad_revisions
            pods = [replace(each, is_ready=is_good and each.node not in self.lost) for each in pods]
            lease = LeaseFacts(True) if is_good else group.lease
            self.groups[group.id] = replace(group, pods=tuple(sorted(pods, key=lambda p: p.ordinal or 0)), lease=lease)

    def _sweep(self) -> None:
        """What has drained is gone; on a node that is cut off nothing ends."""
        for group in list(self.groups.values()):
            pods = tuple(
                each for each in group.pods if each.ends_by is None or self.now < each.ends_by or each.node in self.lost
            )
            self.groups[group.id] = replace(group, pods=pods)
            if group.is_terminating and not pods:
                del self.groups[group.id]

    def _made(self, group: ReplicaFacts) -> list[PodFacts]:
        there = {each.ordinal for each in group.pods}
        missing = [] if group.is_terminating else [rank for rank in range(group.size) if rank not in there]
        return [
            pod(
                f"{group.id}-{rank}",
                uid=f"{group.id}-{rank}-{self.now}",
                created_at=self.now,
                ordinal=rank,
                replica=group.id,
            )
            for rank in missing
        ]

    def _bound(self, each: PodFacts) -> PodFacts:
        name = each.planned_node
        if (
            each.node
            or name is None
            or not is_lifted(each)
            or each.is_terminating
            or name in {*self.lost, *self.cordoned}
        ):
            return each
        others = [p for g in self.groups.values() for p in g.pods if p.uid != each.uid and p.node] + self.foreign
        used = use_by_node(p for p in others if p.node).get(name, {}).get(GPU, 0.0)
        return replace(each, node=name) if used + each.requests[GPU] <= 8 else each
