"""Who owns which route name, by all deployments there are; remembered until a deployment changes."""

from __future__ import annotations

from collections.abc import Mapping

from hanmaru_operator import kinds
from hanmaru_operator.objects import Change
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.routes import RouteClaim, RoutesPlan, plan_routes
from hanmaru_operator.types import ObjectKey


class Routes:
    """Owners keep their names from plan to plan, so it remembers them."""

    def __init__(self) -> None:
        self._claims: dict[ObjectKey, RouteClaim] = {}
        self._owners: Mapping[str, str] = {}
        self._plan: RoutesPlan | None = None

    def begin(self, owners: Mapping[str, str]) -> None:
        """Who owned the names before this process began."""
        self._owners = owners
        self._plan = None

    def changed(self, change: Change) -> None:
        """The store tells of every change; most, such as our own statuses, change no claim."""
        if change.key.kind != kinds.MODEL_DEPLOYMENTS.kind:
            return
        claim = claim_of(change.new) if change.new is not None and not change.new.is_terminating else None
        if claim == self._claims.get(change.key):
            return
        if claim is None:
            del self._claims[change.key]
        else:
            self._claims[change.key] = claim
        self._plan = None

    def plan(self) -> RoutesPlan:
        """As of now."""
        if self._plan is None:
            self._plan = plan_routes(self._claims.values(), self._owners)
            self._owners = self._plan.owners
        return self._plan


def claim_of(deployment: Entry) -> RouteClaim:
    """A deployment as far as its route name goes."""
    route = deployment.spec["route"]
    return RouteClaim(
        deployment.key.namespace,
        deployment.key.name,
        deployment.uid,
        deployment.created_at,
        route["name"],
        route.get("weight", 100),
    )
