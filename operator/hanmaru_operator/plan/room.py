"""What is left on each node, every pod counted: ours and others', bound ones and those on their way.

`observe` calls `use_by_node` once for the pods of the whole cluster and `room` for each pool's nodes. Which group may
take the room is `placement` and `lifts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hanmaru_operator.types import NodeFacts, NodeName, NodeRoom, PodFacts

Amounts = Mapping[str, float]
"""By resource."""
PODS = "pods"
"""Nodes bound the number of pods, too; each counts as one."""


def use_by_node(pods: Iterable[PodFacts]) -> dict[NodeName, dict[str, float]]:
    """What pods hold, or will hold, of each node.

    Pods that have ended hold nothing; pods that are terminating still do. A pod of ours that is not bound yet holds
    its planned node's room, or a second group would be planned there.
    """
    used: dict[NodeName, dict[str, float]] = {}
    for pod in pods:
        node = pod.node or pod.planned_node
        if node is None or pod.has_ended:
            continue
        held = used.setdefault(node, {PODS: 0.0})
        held[PODS] += 1
        for resource, amount in pod.requests.items():
            if resource != PODS:
                held[resource] = held.get(resource, 0.0) + amount
    return used


def room(nodes: Sequence[NodeFacts], used: Mapping[NodeName, Amounts]) -> tuple[NodeRoom, ...]:
    """The nodes with what is free on each: allocatable less `use_by_node`; below 0 where a node has shrunk."""
    return tuple(NodeRoom(node, less(node.allocatable, used.get(node.name, {}))) for node in nodes)


def less(amounts: Amounts, taken: Amounts, times: int = 1) -> Amounts:
    """`amounts` without `times` what is taken, for the resources that `amounts` names."""
    if not taken:
        return amounts
    return {resource: amount - times * taken.get(resource, 0.0) for resource, amount in amounts.items()}
