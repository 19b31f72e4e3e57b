"""Who owns which route name, by all deployments there are; remembered until a deployment changes."""

from __future__ import annotations

from collections.abc import Mapping

from hanmaru_operator import kinds
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.routes import RouteClaim, RoutesPlan, plan_routes


class Routes:
    """Owners keep their names from plan to plan, so it remembers them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owners: Mapping[str, str] = {}
        self._plan: RoutesPlan | None = None

    def begin(self, owners: Mapping[str, str]) -> None:
        """Who owned the names before this process began."""
        self._owners = owners
        self._plan = None

    def changed(self, change: Change) -> None:
        """The store tells of every change."""
        if change.key.kind == kinds.MODEL_DEPLOYMENTS.kind:
            self._plan = None

    def plan(self) -> RoutesPlan:
        """As of now."""
        if self._plan is None:
            entries = self._store.of_kind(kinds.MODEL_DEPLOYMENTS.kind)
            self._plan = plan_routes([claim_of(entry) for entry in entries if not entry.is_terminating], self._owners)
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
