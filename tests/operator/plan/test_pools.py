"""A node belongs to the oldest pool that matches it, and labels match as in node affinity."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hanmaru_contracts.crd.schema import LabelRequirement
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import NodeSelectorTerm
from hanmaru_operator.plan.pools import PoolClaim, assign_nodes, is_met
from hanmaru_operator.types import NodeFacts, NodeName, PoolName
from hypothesis import given
from hypothesis import strategies as st

LABELS = {"gpu": "a100", "size": "40", "odd": "1_000", "empty": ""}


def need(key: str, operator: str, *values: str) -> LabelRequirement:
    return LabelRequirement(key=key, operator=operator, values=values)


def labelled(name: str, **labels: str) -> NodeFacts:
    return NodeFacts(NodeName(name), labels, {}, is_ready=True, is_schedulable=True)


def claim(name: str, *terms: Sequence[LabelRequirement], created_at: float = 0.0, uid: str = "") -> PoolClaim:
    made = tuple(NodeSelectorTerm(match_expressions=tuple(term)) for term in terms)
    return PoolClaim(PoolName(name), uid or name, created_at, made)


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        (need("gpu", "In", "h100", "a100"), True),
        (need("gpu", "In", "h100"), False),
        (need("none", "In", "a100"), False),
        (need("none", "In", ""), False),
        (need("gpu", "In"), False),
        (need("gpu", "NotIn", "a100"), False),
        (need("gpu", "NotIn", "h100"), True),
        (need("none", "NotIn", "a100"), True),
        (need("empty", "NotIn", "a100"), True),
        (need("gpu", "Exists"), True),
        (need("empty", "Exists"), True),
        (need("none", "Exists"), False),
        (need("none", "DoesNotExist"), True),
        (need("gpu", "DoesNotExist"), False),
        (need("size", "Gt", "39"), True),
        (need("size", "Gt", "40"), False),
        (need("size", "Lt", "41"), True),
        (need("size", "Lt", "40"), False),
        (need("size", "Gt", "-1"), True),
        (need("gpu", "Gt", "1"), False),
        (need("none", "Lt", "1"), False),
        (need("odd", "Gt", "1"), False),
        (need("size", "Gt", "9", "10"), False),
        (need("size", "Lt", "9223372036854775808"), False),
    ],
)
def test_requirements_mean_what_they_mean_in_node_affinity(requirement: LabelRequirement, expected: bool) -> None:
    assert is_met(requirement, LABELS) is expected


def test_terms_are_ored_and_their_requirements_anded() -> None:
    nodes = [labelled("n1", a="1", b="1"), labelled("n2", a="1"), labelled("n3", c="1"), labelled("n4")]
    pool = claim("p", [need("a", "In", "1"), need("b", "Exists")], [need("c", "Exists")])
    assert [node.name for node in assign_nodes([pool], nodes)[PoolName("p")].nodes] == ["n1", "n3"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (claim("z", [need("a", "Exists")], created_at=1.0), claim("b", [need("a", "Exists")], created_at=2.0)),
        (claim("z", [need("a", "Exists")], uid="1"), claim("b", [need("a", "Exists")], uid="2")),
    ],
)
def test_a_node_in_two_pools_belongs_to_the_older_and_the_younger_is_told(first: PoolClaim, second: PoolClaim) -> None:
    nodes = [labelled("n1", a="1"), labelled("n2", b="1")]
    for pools in ([first, second], [second, first]):
        assigned = assign_nodes(pools, nodes)
        assert [node.name for node in assigned[first.name].nodes] == ["n1"]
        assert assigned[second.name].nodes == ()
        assert assigned[second.name].overlapping == {"n1": first.name}
        assert assigned[first.name].overlapping == {}


KEYS, VALUES = st.sampled_from("ab"), st.sampled_from(["1", "2", "x"])
REQUIREMENTS = st.one_of(
    st.builds(need, KEYS, st.sampled_from(["In", "NotIn"]), VALUES, VALUES),
    st.builds(need, KEYS, st.sampled_from(["Gt", "Lt"]), VALUES),
    st.builds(need, KEYS, st.sampled_from(["Exists", "DoesNotExist"])),
)


@given(
    terms=st.lists(st.lists(st.lists(REQUIREMENTS, min_size=1, max_size=2), min_size=1, max_size=2), max_size=3),
    labels=st.lists(st.dictionaries(KEYS, VALUES), max_size=5),
)
def test_every_node_has_the_first_pool_that_matches_it(
    terms: list[list[list[LabelRequirement]]], labels: list[dict[str, str]]
) -> None:
    pools = [claim(f"p{age}", *given, created_at=float(age)) for age, given in enumerate(terms)]
    nodes = [labelled(f"n{number}", **given) for number, given in enumerate(labels)]
    assigned = assign_nodes(pools, nodes)
    for node in nodes:
        matching = [
            pool.name
            for pool in pools
            if any(all(is_met(each, node.labels) for each in term.match_expressions) for term in pool.terms)
        ]
        assert [name for name, found in assigned.items() if node in found.nodes] == matching[:1]
        assert {name for name, found in assigned.items() if node.name in found.overlapping} == set(matching[1:])


def test_10000_nodes_are_assigned_to_200_pools_quickly() -> None:
    nodes = [labelled(f"n{number}", pool=f"p{number % 200}") for number in range(10_000)]
    pools = [claim(f"p{number}", [need("pool", "In", f"p{number}")]) for number in range(200)]
    began = time.perf_counter()
    assigned = assign_nodes(pools, nodes)
    assert time.perf_counter() - began < 1.0
    assert {len(found.nodes) for found in assigned.values()} == {50}
