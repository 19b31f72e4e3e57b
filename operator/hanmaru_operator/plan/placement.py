"""Which nodes a whole group would get, or how far it is from fitting. Never half a group.

`lifts` asks for groups that wait, `observe` for the numbers of a deployment's pools. Best fit, so that large holes stay
large. Looked at: readiness, cordons, taints, every resource the pods ask for. Left to the kube-scheduler: affinities
and volumes of a user's own pod template; a group that those keep from its nodes runs into the pool's bind timeout.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import Toleration

from hanmaru_operator.plan.room import PODS, Amounts
from hanmaru_operator.types import NodeName, NodeRoom

_ROUNDING = 1e-9
"""Sums of tenths of cores are off by about 1e-15."""
_GIB = 1 << 30
_MANY = 1e6
"""Pods on a node that names no bound."""
Domain = tuple[str, list[NodeRoom]]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What a group asks for: `size` pods that are all alike, in one domain."""

    requests: Amounts
    """Of one pod."""
    size: int
    resource: str
    """The pool's devices."""
    domain_key: str = ""
    """Label of the nodes; a group stays within one value of it. Empty: all nodes are one domain."""
    tolerations: tuple[Toleration, ...] = ()

    @property
    def devices(self) -> float:
        """Devices of one pod."""
        return self.requests.get(self.resource, 0.0)


@dataclass(frozen=True, slots=True)
class Placed:
    """The whole group fits."""

    nodes: tuple[NodeName, ...]
    """By rank. A node stands several times when pods share it."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The group does not fit."""

    devices_missing: int
    """Fewest further devices that would do, in the best domain. 0: something else is missing, see `message`."""
    best_domain: str
    """Empty: there is none, or the pool is one domain."""
    message: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pool has for one more group; the numbers of a `PoolOption`."""

    free_groups: int
    devices_missing: int
    no_room: str
    fits_empty: bool


def place_group(shape: GroupShape, rooms: Sequence[NodeRoom]) -> Placed | NoRoom:
    """Nodes for every pod: the domain with the fewest places left over, and in it the fullest nodes first."""
    domains = _domains(shape, rooms)
    fitting = [
        (sum(places), _free_devices(shape, members), name, members, places)
        for name, members in domains
        if sum(places := [_places(shape, member.free) for member in members]) >= shape.size
    ]
    if not fitting:
        return _no_room(shape, domains)
    _, _, _, members, places = min(fitting, key=lambda domain: domain[:3])
    tightest_first = sorted(
        zip(members, places, strict=True),
        key=lambda member: (member[0].free.get(shape.resource, 0.0), member[0].node.name),
    )
    seats = [member.node.name for member, count in tightest_first for _ in range(min(count, shape.size))]
    return Placed(tuple(seats[: shape.size]))


def free_groups(shape: GroupShape, rooms: Sequence[NodeRoom]) -> int:
    """How many such groups fit beside each other. Exact, because the pods of a group are alike."""
    return sum(
        sum(_places(shape, member.free) for member in members) // shape.size for _, members in _domains(shape, rooms)
    )


def fits_empty(shape: GroupShape, rooms: Sequence[NodeRoom]) -> bool:
    """Whether the group would fit if nothing held the pool's devices.

    On a node whose devices are all free, the rest is counted as it is: what daemons hold there never comes free.
    """
    return free_groups(shape, [NodeRoom(each.node, _emptied(shape.resource, each)) for each in rooms]) > 0


def offer(shape: GroupShape, rooms: Sequence[NodeRoom], *, held_by: str = "") -> Offer:
    """What is left for one more group. `held_by`: an older group that waits for these nodes and goes first."""
    count = free_groups(shape, rooms)
    if count and held_by:
        return Offer(0, 0, behind(held_by), fits_empty=True)
    if count:
        return Offer(count, 0, "", fits_empty=True)
    short = _no_room(shape, _domains(shape, rooms))
    return Offer(0, short.devices_missing, short.message, fits_empty(shape, rooms))


def behind(group: str) -> str:
    """What a group is told that waits behind an older one."""
    return f"waits behind {group}, which is older"


def is_usable(room: NodeRoom, tolerations: Sequence[Toleration]) -> bool:
    """Whether pods with these tolerations may be sent to the node now."""
    node = room.node
    return (
        node.is_ready
        and node.is_schedulable
        and all(
            effect == "PreferNoSchedule" or any(endures(toleration, key, value, effect) for toleration in tolerations)
            for key, value, effect in node.taints
        )
    )


def endures(toleration: Toleration, key: str, value: str, effect: str) -> bool:
    """Whether a toleration lets a pod onto a node with this taint, as Kubernetes decides it."""
    if toleration.effect not in ("", effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", key)
    return toleration.key == key and toleration.value == value


def _domains(shape: GroupShape, rooms: Iterable[NodeRoom]) -> list[Domain]:
    """Usable nodes by domain. A node without the label belongs to none."""
    domains: dict[str, list[NodeRoom]] = {}
    for room in rooms:
        name = room.node.labels.get(shape.domain_key) if shape.domain_key else ""
        if name is not None and is_usable(room, shape.tolerations):
            domains.setdefault(name, []).append(room)
    return list(domains.items())


def _places(shape: GroupShape, amounts: Amounts) -> int:
    """How many pods of the group the amounts hold."""
    places = amounts.get(PODS, _MANY)
    for resource, wanted in shape.requests.items():
        if wanted > 0:
            places = min(places, amounts.get(resource, 0.0) / wanted)
    return max(0, math.floor(places + _ROUNDING))


def _free_devices(shape: GroupShape, members: Sequence[NodeRoom]) -> float:
    return sum(member.free.get(shape.resource, 0.0) for member in members)


def _emptied(resource: str, room: NodeRoom) -> Amounts:
    are_all_free = room.free.get(resource, 0.0) >= room.node.allocatable.get(resource, 0.0)
    return room.free if are_all_free else room.node.allocatable


# --- what is missing -----------------------------------------------------------------------------------------------


def _no_room(shape: GroupShape, domains: Sequence[Domain]) -> NoRoom:
    if not domains:
        where = f" has the label {shape.domain_key} and" if shape.domain_key else ""
        message = f"{_whole(shape.size * shape.devices)} missing: no node{where} is ready, schedulable and tolerated"
        return NoRoom(_whole(shape.size * shape.devices), "", message)
    shortages = [(_shortage(shape, members), name) for name, members in domains]
    missing, name = min(shortages, key=lambda domain: (_whole(domain[0].get(shape.resource, 0.0)), domain[1]))
    devices = _whole(missing.get(shape.resource, 0.0))
    members = dict(domains)[name]
    beside = {short for member in members for short in _short_of(shape, member)}
    if devices:
        what = f"{devices} missing" + (f" (too little {', '.join(sorted(beside))} beside free ones)" if beside else "")
    else:
        others = [_amount(resource, missing[resource]) for resource in sorted(missing)]
        what = f"{', '.join(others) or 'places for pods'} missing beside free {shape.resource}"
    return NoRoom(devices, name, f"{what}, best in {name}" if name else what)


def _short_of(shape: GroupShape, room: NodeRoom) -> list[str]:
    """Resources that keep a pod from a node whose devices are free."""
    if not shape.devices or room.free.get(shape.resource, 0.0) < shape.devices:
        return []
    return [resource for resource, wanted in shape.requests.items() if room.free.get(resource, 0.0) < wanted]


def _shortage(shape: GroupShape, members: Sequence[NodeRoom]) -> dict[str, float]:
    """The least that the domain lacks, by resource: first what full nodes would have to give, then whole new nodes."""
    places = sum(_places(shape, member.free) for member in members)
    wanted = shape.size - places
    openings = heapq.nsmallest(
        wanted,
        (gap for member in members for gap in _gaps(shape, member)),
        key=lambda gap: (gap.get(shape.resource, 0.0), sorted(gap.items())),
    )
    missing: dict[str, float] = {}
    for gap in [*openings, *[shape.requests] * (wanted - len(openings))]:
        for resource, amount in gap.items():
            missing[resource] = missing.get(resource, 0.0) + amount
    return missing


def _gaps(shape: GroupShape, room: NodeRoom) -> list[Mapping[str, float]]:
    """What each further pod would need on a node, for as many as the empty node holds."""
    now = _places(shape, room.free)
    more = min(_places(shape, room.node.allocatable) - now, shape.size)
    if more <= 0:
        return []
    first = {
        resource: short
        for resource, wanted in shape.requests.items()
        if (short := (now + 1) * wanted - room.free.get(resource, 0.0)) > _ROUNDING
    }
    return [first, *[shape.requests] * (more - 1)]


def _whole(amount: float) -> int:
    return math.ceil(amount - _ROUNDING)


def _amount(resource: str, amount: float) -> str:
    if resource in ("memory", "ephemeral-storage"):
        return f"{amount / _GIB:.1f}Gi {resource}"
    return f"{amount:g} {resource}"
