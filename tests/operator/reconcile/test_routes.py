"""Route names follow the deployments, and are planned anew only when a claim differs."""

from __future__ import annotations

import json

from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.reconcile.routes import Routes, claim_of
from hanmaru_operator.types import ObjectKey


def deployment(namespace: str, version: int, *, route: str = "chat", weight: int = 100, **more: object) -> Entry:
    return Entry(
        key=ObjectKey("ModelDeployment", namespace, "m"),
        uid=f"uid-{namespace}",
        resource_version=version,
        generation=1,
        created_at=0.0 if namespace == "old" else 1.0,
        is_terminating=bool(more.get("is_terminating")),
        owner_uid="",
        labels={},
        spec_json=json.dumps({"route": {"name": route, "weight": weight}}).encode(),
        status_json=json.dumps(more.get("status", {})).encode(),
    )


def routes_of(routes: Routes) -> dict[str, dict[str, int]]:
    return {name: {str(model): weight for model, weight in of.items()} for name, of in routes.plan().routes.items()}


def made() -> tuple[Store, Routes]:
    routes = Routes()
    return Store(routes.changed), routes


def test_names_follow_what_deployments_claim() -> None:
    store, routes = made()
    store.put(deployment("new", 1))
    assert routes_of(routes) == {"chat": {"new/m": 100}}
    store.put(deployment("old", 2))
    assert not routes.plan().owns(claim_of(deployment("old", 2)))  # who has a name keeps it
    store.put(deployment("new", 3, weight=7))
    assert routes_of(routes) == {"chat": {"new/m": 7}}
    store.put(deployment("new", 4, is_terminating=True))
    assert routes_of(routes) == {"chat": {"old/m": 100}}
    store.remove(deployment("new", 4).key, "uid-new", 5)
    store.remove(deployment("old", 2).key, "uid-old", 6)
    assert routes_of(routes) == {}


def test_a_status_plans_nothing_anew() -> None:
    store, routes = made()
    store.put(deployment("old", 1))
    before = routes.plan()
    store.put(deployment("old", 2, status={"replicas": 1}))
    assert routes.plan() is before
    routes.changed(Change(None, Entry(ObjectKey("Pod", "ns", "p"), "u", 1, 0, 0.0, False, "", {})))
    assert routes.plan() is before
