"""Whose a route name is, and which models share it by which weights. Pure; called with all deployments together.

A name belongs to one namespace. That which had it keeps it for as long as any deployment of its own claims it, so that
replacing a deployment by another cannot lose the name to somebody who waited. A name nobody had goes to the namespace
of the oldest claim. Every deployment of another namespace gets nothing: no replica and no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.directory import Routes

from hanmaru_operator.types import ConditionType, Statement


@dataclass(frozen=True, slots=True)
class RouteClaim:
    """A deployment as far as it wants a route name; it claims it stopped or not, ready or not."""

    namespace: str
    name: str
    uid: str
    created_at: float
    route: str
    weight: int

    @property
    def model(self) -> ModelId:
        """`namespace/name`."""
        return ModelId(f"{self.namespace}/{self.name}")

    @property
    def age(self) -> tuple[float, str]:
        """The oldest sorts first; the uid decides between deployments of one second."""
        return self.created_at, self.uid


class RouteReason(StrEnum):
    """Reasons of `NameConflict` on a deployment."""

    OWNED = "RouteOwned"
    TAKEN = "RouteTaken"


@dataclass(frozen=True, slots=True)
class RoutesPlan:
    """Every name that is claimed, with its owner."""

    owners: Mapping[str, str]
    """Route name -> namespace; the next plan is given it."""
    routes: Routes
    """What Redis is to hold."""

    def owns(self, claim: RouteClaim) -> bool:
        """Whether the deployment may serve under its route."""
        return self.owners.get(claim.route) == claim.namespace

    def statement(self, claim: RouteClaim) -> Statement:
        """`NameConflict` of the deployment."""
        if self.owns(claim):
            return Statement(ConditionType.NAME_CONFLICT, False, RouteReason.OWNED)
        return Statement(
            ConditionType.NAME_CONFLICT,
            True,
            RouteReason.TAKEN,
            f"route `{claim.route}` belongs to namespace `{self.owners[claim.route]}`; "
            "delete this ModelDeployment and create it with another route.name",
        )


def plan_routes(claims: Iterable[RouteClaim], owners_before: Mapping[str, str]) -> RoutesPlan:
    """Who owns which route. `owners_before` is the last plan's, or what Redis held when the operator started."""
    by_route: dict[str, list[RouteClaim]] = {}
    for claim in claims:
        by_route.setdefault(claim.route, []).append(claim)
    owners = {route: _owner(by_route[route], owners_before.get(route)) for route in sorted(by_route)}
    return RoutesPlan(
        owners,
        {
            route: {claim.model: claim.weight for claim in by_route[route] if claim.namespace == owner}
            for route, owner in owners.items()
        },
    )


def owners_of(routes: Routes) -> dict[str, str]:
    """Who owned the routes that Redis holds; what names no model says nothing."""
    return {route: min(models).partition("/")[0] for route, models in routes.items() if models}


def _owner(claims: list[RouteClaim], before: str | None) -> str:
    if any(claim.namespace == before for claim in claims):
        assert before is not None
        return before
    return min(claims, key=lambda claim: claim.age).namespace
