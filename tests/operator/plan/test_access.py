"""Those who offer a pool or a model say to whom; what cannot be understood is a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.schema import LabelSelector
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AllowedNamespaces
from hanmaru_contracts.crd.v1alpha1.model_deployment import Access
from hanmaru_operator.plan.access import may_be_granted, may_use_pool, selects

NAMESPACES = {"red": {"team": "red", "tier": "1"}, "blue": {"team": "blue"}, "bare": {}}
RED = {"matchLabels": {"team": "red"}}


def _expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, {"red", "blue", "bare"}),
        (RED, {"red"}),
        ({"matchLabels": {"team": "red", "tier": "2"}}, set()),
        (_expression("team", "In", "red", "blue"), {"red", "blue"}),
        (_expression("team", "In"), set()),
        (_expression("team", "NotIn", "red"), {"blue", "bare"}),
        (_expression("team", "NotIn"), set()),
        (_expression("tier", "Exists"), {"red"}),
        (_expression("tier", "DoesNotExist"), {"blue", "bare"}),
        (_expression("tier", "Gt", "0"), set()),
        (RED | _expression("tier", "DoesNotExist"), set()),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(selector: dict[str, Any], chosen: set[str]) -> None:
    parsed = LabelSelector.model_validate(selector)
    assert {name for name, labels in NAMESPACES.items() if selects(parsed, labels)} == chosen


@pytest.mark.parametrize(
    ("allowed", "users"),
    [
        ({}, {"red", "blue", "bare", "unseen"}),
        ({"from": "All"}, {"red", "blue", "bare", "unseen"}),
        ({"from": "None"}, set()),
        ({"from": "Selector", "selector": RED}, {"red"}),
        ({"from": "Selector", "selector": {}}, {"red", "blue", "bare"}),
        ({"from": "Selector"}, set()),
    ],
)
def test_a_pool_names_the_namespaces_that_may_use_it(allowed: dict[str, Any], users: set[str]) -> None:
    parsed = AllowedNamespaces.model_validate(allowed)
    assert {name for name in (*NAMESPACES, "unseen") if may_use_pool(parsed, name, NAMESPACES)} == users


@pytest.mark.parametrize(
    ("access", "granted"),
    [
        ({}, {"blue"}),
        ({"from": "Same"}, {"blue"}),
        ({"from": "Selector", "selector": RED}, {"blue", "red"}),
        ({"from": "Selector"}, {"blue"}),
        ({"from": "All"}, {"red", "blue", "bare", "unseen"}),
    ],
)
def test_a_deployment_names_the_namespaces_that_may_be_granted_it(access: dict[str, Any], granted: set[str]) -> None:
    parsed = Access.model_validate(access)
    tenants = (*NAMESPACES, "unseen")
    assert {name for name in tenants if may_be_granted(parsed, "blue", name, NAMESPACES)} == granted
