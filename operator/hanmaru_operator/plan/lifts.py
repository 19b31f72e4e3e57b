"""Which gates are lifted now: groups start whole or not at all, the oldest first.

One call for a pool, with all groups in it. The caller applies the lifts, and learns which groups have no room (they
may fall back to another pool) and what is left for new ones. `maintenance` takes back what was lifted and not bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hanmaru_contracts.names import GATE_GROUP, ReplicaId

from hanmaru_operator.plan.groups import digest_of, is_broken, is_lifted
from hanmaru_operator.plan.placement import GroupShape, NoRoom, Placed, behind, fits_empty, is_usable, place_group
from hanmaru_operator.plan.room import PODS, Amounts, less
from hanmaru_operator.types import LiftGate, NodeName, NodeRoom, PodFacts, PoolFacts, ReplicaFacts

GroupKey = tuple[str, ReplicaId]
"""Namespace and replica."""
CREATION_GRACE_S = 60.0
"""So long a new group keeps its place in the line while its pods are still being made."""


@dataclass(frozen=True, slots=True)
class Group:
    """A replica as the line in front of a pool sees it."""

    namespace: str
    id: ReplicaId
    size: int
    created_at: float
    requests: Amounts
    """Of one pod."""
    pods: tuple[PodFacts, ...]
    """In order of rank."""

    @property
    def key(self) -> GroupKey:
        """Its name in the cluster."""
        return (self.namespace, self.id)


def group_of(replica: ReplicaFacts) -> Group | None:
    """A replica's place in the line. None: it ends, or has no pod yet by which to know what it asks for."""
    if replica.is_terminating or not replica.pods:
        return None
    requests = replica.pods[0].requests
    return Group(replica.namespace, replica.id, replica.size, replica.created_at, requests, replica.pods)


@dataclass(frozen=True, slots=True)
class LiftPlan:
    """What to lift, and what that leaves."""

    lifts: tuple[LiftGate, ...]
    without_room: Mapping[GroupKey, NoRoom]
    """Groups that wait because there is no room for them, and what each lacks."""
    rooms: tuple[NodeRoom, ...]
    """What is left when everything that fits has been placed."""
    held_by: str = ""
    """The oldest group that waits and could fit; younger ones stand behind it. Empty: nobody stands in the way."""


def plan_lifts(pool: PoolFacts, groups: Iterable[Group], now: float) -> LiftPlan:
    """Lift the groups that fit, oldest first (by creation, then name); `groups`: all of the pool but those that end.

    A group waits behind an older one without room only if that one would fit into the empty pool: what can never fit
    blocks nobody. Groups that cannot start for another reason (pods missing or terminating, others' gates) do not stand
    in line, and are not counted as without room. A group half lifted by a crash is completed in its domain.
    """
    line = _Line(pool)
    for group in sorted(groups, key=lambda group: (group.created_at, group.namespace, group.id)):
        lifted = [pod for pod in group.pods if is_lifted(pod) or pod.planned_node]
        if lifted:
            line.complete(group, lifted)
        elif _is_startable(group) or _is_being_made(group, now):
            line.enter(group)
    return LiftPlan(tuple(line.lifts), line.without_room, tuple(line.rooms.values()), line.held_by)


class _Line:
    """The pool's rooms while they are given away, and what came of it."""

    def __init__(self, pool: PoolFacts) -> None:
        spec = pool.spec
        self._resource = spec.devices.resource.name if spec.devices.resource else ""
        self._domain_key = spec.topology.domain_key
        self._tolerations = spec.nodes.tolerations
        self.rooms: dict[NodeName, NodeRoom] = {room.node.name: room for room in pool.nodes}
        self.lifts: list[LiftGate] = []
        self.without_room: dict[GroupKey, NoRoom] = {}
        self.held_by = ""

    def enter(self, group: Group) -> None:
        """Give a whole group its nodes, or let it wait."""
        shape = self._shape(group, group.size)
        if self.held_by:
            self.without_room[group.key] = NoRoom(0, "", behind(self.held_by))
            return
        placed = place_group(shape, tuple(self.rooms.values()))
        if isinstance(placed, Placed):
            self._give(group, group.pods, placed.nodes)
            return
        self.without_room[group.key] = placed
        if fits_empty(shape, tuple(self.rooms.values())):
            self.held_by = f"{group.namespace}/{group.id}"

    def complete(self, group: Group, lifted: Sequence[PodFacts]) -> None:
        """Lift what a crash left gated, if it still can be; otherwise the bind timeout takes the group back."""
        gated = [pod for pod in group.pods if not is_lifted(pod)]
        if not gated or not _is_startable(group) or is_broken(group.pods, group.size):
            return
        planned = [pod for pod in gated if pod.planned_node]
        if not all(self._is_open(pod.planned_node) for pod in planned):
            return
        unplanned = [pod for pod in gated if not pod.planned_node]
        placed = place_group(self._shape(group, len(unplanned)), self._domain_of(lifted)) if unplanned else Placed(())
        if isinstance(placed, Placed):
            # Planned pods are counted on their nodes already.
            self.lifts += [_lift(group, pod, pod.planned_node) for pod in planned if pod.planned_node]
            self._give(group, unplanned, placed.nodes)

    def _shape(self, group: Group, size: int) -> GroupShape:
        return GroupShape(group.requests, size, self._resource, self._domain_key, self._tolerations)

    def _is_open(self, node: NodeName | None) -> bool:
        return node in self.rooms and is_usable(self.rooms[node], self._tolerations)

    def _domain_of(self, lifted: Sequence[PodFacts]) -> tuple[NodeRoom, ...]:
        """Rooms in the one domain where the group's other pods are; none when that cannot be told."""
        nodes = {pod.node or pod.planned_node for pod in lifted}
        homes = [self.rooms[node] for node in nodes if node is not None and node in self.rooms]
        domains = {room.node.labels.get(self._domain_key) for room in homes}
        if len(homes) < len(nodes) or len(domains) != 1:
            return ()
        if not self._domain_key:
            return tuple(self.rooms.values())
        return tuple(room for room in self.rooms.values() if room.node.labels.get(self._domain_key) in domains)

    def _give(self, group: Group, pods: Sequence[PodFacts], nodes: Sequence[NodeName]) -> None:
        """Take the room; lift the pods, of which a group that is still being made has none to lift yet."""
        for node in nodes:
            room = self.rooms[node]
            self.rooms[node] = NodeRoom(room.node, less(room.free, {**group.requests, PODS: 1.0}))
        if _is_startable(group):
            self.lifts += [_lift(group, pod, node) for pod, node in zip(pods, nodes, strict=True)]


def _lift(group: Group, pod: PodFacts, node: NodeName | None) -> LiftGate:
    assert node is not None
    return LiftGate(pod.namespace, pod.name, pod.uid, node, digest_of(group.pods))


def _is_startable(group: Group) -> bool:
    """Whether all pods are there, none is on its way out, and nothing but our gate holds those that are gated."""
    return len(group.pods) == group.size and all(
        not pod.is_terminating and not pod.has_ended and (is_lifted(pod) or pod.gates == (GATE_GROUP,))
        for pod in group.pods
    )


def _is_being_made(group: Group, now: float) -> bool:
    return (
        len(group.pods) < group.size
        and not any(pod.is_terminating or pod.has_ended for pod in group.pods)
        and abs(now - group.created_at) < CREATION_GRACE_S
    )
