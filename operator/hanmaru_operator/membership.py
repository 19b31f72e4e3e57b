"""Which nodes an AcceleratorPool's terms select. Pure; `triggers` asks, and whoever makes `PoolFacts`.

Terms are ORed and their requirements ANDed, as in a pod's node affinity, so that what we count is what the scheduler
would take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hanmaru_contracts.crd.schema import LabelRequirement
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import NodeSelectorTerm

Labels = Mapping[str, str]


def selects_node(terms: Iterable[NodeSelectorTerm], labels: Labels) -> bool:
    """Whether any of the terms holds for a node with these labels."""
    return any(all(_holds(requirement, labels) for requirement in term.match_expressions) for term in terms)


def _holds(requirement: LabelRequirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return _compares(requirement, value)


def _compares(requirement: LabelRequirement, value: str | None) -> bool:
    """`Gt` and `Lt`: both sides are whole numbers, or nothing matches."""
    try:
        seen, bound = int(value or ""), int(requirement.values[0])
    except ValueError:
        return False
    return seen > bound if requirement.operator == "Gt" else seen < bound
