"""Which node belongs to which pool: the oldest pool whose selector matches it.

`observe` calls this when pools or nodes' labels change. Requirements mean what they mean in a pod's node affinity, so
that a pod narrowed to a node of the pool is one the pool's people expected there. What is left on a node is `room`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hanmaru_contracts.crd.schema import LabelRequirement
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import NodeSelectorTerm

from hanmaru_operator.types import NodeFacts, NodeName, PoolName

Labels = Mapping[str, str]
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class PoolClaim:
    """A pool as far as nodes are concerned."""

    name: PoolName
    uid: str
    created_at: float
    terms: tuple[NodeSelectorTerm, ...]
    """ORed."""


@dataclass(frozen=True, slots=True)
class PoolNodes:
    """What became of a claim."""

    nodes: tuple[NodeFacts, ...] = ()
    """By name."""
    overlapping: Mapping[NodeName, PoolName] = field(default_factory=dict)
    """Nodes it matches that belong to an older pool, and which."""


def assign_nodes(pools: Sequence[PoolClaim], nodes: Sequence[NodeFacts]) -> dict[PoolName, PoolNodes]:
    """Nodes by pool. Of two pools that match a node, the older has it (by creation, then uid, then name).

    Terms with an `In` look only at nodes that have one of its values, so 200 pools that each name a label of their
    10,000 nodes do not cost 2,000,000 comparisons.
    """
    ordered = sorted(nodes, key=lambda node: node.name)
    index = _LabelIndex(ordered)
    owners: dict[int, PoolName] = {}
    assigned: dict[PoolName, PoolNodes] = {}
    for pool in sorted(pools, key=lambda pool: (pool.created_at, pool.uid, pool.name)):
        matched = sorted({place for term in pool.terms for place in index.matching(term)})
        overlapping = {ordered[place].name: owners[place] for place in matched if place in owners}
        own = [place for place in matched if place not in owners]
        owners.update(dict.fromkeys(own, pool.name))
        assigned[pool.name] = PoolNodes(tuple(ordered[place] for place in own), overlapping)
    return assigned


class _LabelIndex:
    """Places of nodes in a list by a label's value; made for a key when first asked."""

    def __init__(self, nodes: Sequence[NodeFacts]) -> None:
        self._nodes = nodes
        self._by_key: dict[str, dict[str, list[int]]] = {}

    def matching(self, term: NodeSelectorTerm) -> Iterable[int]:
        """Places of the nodes for which every requirement of the term holds."""
        requirements = term.match_expressions
        for place in self._candidates(requirements):
            labels = self._nodes[place].labels
            if all(is_met(requirement, labels) for requirement in requirements):
                yield place

    def _candidates(self, requirements: Sequence[LabelRequirement]) -> Iterable[int]:
        for requirement in requirements:
            if requirement.operator == "In":
                values = self._values(requirement.key)
                return [place for value in dict.fromkeys(requirement.values) for place in values.get(value, ())]
        return range(len(self._nodes)) if requirements else ()

    def _values(self, key: str) -> dict[str, list[int]]:
        if key not in self._by_key:
            values: dict[str, list[int]] = {}
            for place, node in enumerate(self._nodes):
                if key in node.labels:
                    values.setdefault(node.labels[key], []).append(place)
            self._by_key[key] = values
        return self._by_key[key]


def is_met(requirement: LabelRequirement, labels: Labels) -> bool:
    """Whether a requirement holds, as in node affinity: `NotIn` holds without the label, a malformed one never."""
    return _OPERATORS[requirement.operator](labels.get(requirement.key), requirement.values)


def _greater(value: str | None, values: Sequence[str]) -> bool:
    seen, bound = _number(value), _number(values[0] if len(values) == 1 else None)
    return seen is not None and bound is not None and seen > bound


def _less(value: str | None, values: Sequence[str]) -> bool:
    seen, bound = _number(value), _number(values[0] if len(values) == 1 else None)
    return seen is not None and bound is not None and seen < bound


def _number(text: str | None) -> int | None:
    """What Go's `ParseInt(text, 10, 64)` reads, or None: Python alone would also take `1_000` and ` 7 `."""
    if text is None or not _WHOLE_NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if -_INT64 <= number < _INT64 else None


_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: bool(values) and value not in values,
    "Exists": lambda value, values: value is not None and not values,
    "DoesNotExist": lambda value, values: value is None and not values,
    "Gt": _greater,
    "Lt": _less,
}
