"""A route name has one owner, who keeps it; everybody else's deployments get nothing."""

from __future__ import annotations

import random

from hanmaru_contracts.wire.directory import read_routes, routes_table
from hanmaru_operator.plan.routes import RouteClaim, owners_of, plan_routes
from hypothesis import given
from hypothesis import strategies as st


def _claim(namespace: str, name: str, created_at: float, route: str = "tiny", weight: int = 100) -> RouteClaim:
    return RouteClaim(namespace, name, f"uid-{namespace}-{name}", created_at, route, weight)


def test_the_oldest_deployments_namespace_owns_the_name_and_shares_it_by_weight() -> None:
    first, second = _claim("red", "blue-green-1", 1, weight=90), _claim("red", "blue-green-2", 3, weight=10)
    stolen, other = _claim("blue", "tiny", 2), _claim("blue", "large", 2, route="large")
    plan = plan_routes([second, stolen, other, first], {})
    assert plan.owners == {"large": "blue", "tiny": "red"}
    assert plan.routes == {
        "tiny": {"red/blue-green-1": 90, "red/blue-green-2": 10},
        "large": {"blue/large": 100},
    }
    assert [plan.owns(claim) for claim in (first, second, stolen, other)] == [True, True, False, True]


def test_the_loser_is_told_whose_the_name_is_and_what_to_do() -> None:
    owner, loser = _claim("red", "a", 1), _claim("blue", "b", 2)
    plan = plan_routes([owner, loser], {})
    assert plan.statement(owner).is_true is False
    told = plan.statement(loser)
    assert (told.type, told.is_true, told.reason) == ("NameConflict", True, "RouteTaken")
    assert "`tiny` belongs to namespace `red`" in told.message
    assert "red/a" not in told.message


def test_of_two_deployments_of_one_second_the_uid_decides() -> None:
    assert plan_routes([_claim("b", "x", 1), _claim("a", "x", 1)], {}).owners == {"tiny": "a"}


def test_the_next_oldest_gets_the_name_when_its_owner_has_gone() -> None:
    claims = [_claim("red", "a", 1), _claim("blue", "b", 2), _claim("green", "c", 3)]
    owners = plan_routes(claims, {}).owners
    assert plan_routes(claims[1:], owners).owners == {"tiny": "blue"}


def test_a_namespace_keeps_its_name_while_it_replaces_its_deployment() -> None:
    old, waiting, new = _claim("red", "old", 1), _claim("blue", "waiting", 2), _claim("red", "new", 3)
    owners = plan_routes([old, waiting], {}).owners
    owners = plan_routes([old, waiting, new], owners).owners
    plan = plan_routes([waiting, new], owners)
    assert plan.owners == {"tiny": "red"}
    assert plan.routes == {"tiny": {"red/new": 100}}


_claims = st.lists(
    st.builds(
        _claim,
        st.sampled_from(["red", "blue", "green"]),
        st.sampled_from(["a", "b", "c.d"]),
        st.integers(0, 3),
        st.sampled_from(["tiny", "large"]),
        st.integers(0, 100),
    ),
    unique_by=lambda claim: claim.model,
    max_size=9,
)


@given(_claims, _claims, st.integers())
def test_every_claimed_name_has_one_owner_whatever_the_order(
    before: list[RouteClaim], claims: list[RouteClaim], seed: int
) -> None:
    owners = plan_routes(before, {}).owners
    plan = plan_routes(claims, owners)
    shuffled = list(claims)
    random.Random(seed).shuffle(shuffled)
    assert plan_routes(shuffled, owners) == plan
    assert set(plan.owners) == {claim.route for claim in claims}
    for route, models in plan.routes.items():
        assert models
        assert {model.partition("/")[0] for model in models} == {plan.owners[route]}
    assert plan_routes(claims, plan.owners) == plan
    raw = {name.encode(): models.encode() for name, models in routes_table(plan.routes).entries.items()}
    assert owners_of(read_routes(raw)[0]) == plan.owners, "what Redis held is as good as the last plan"
