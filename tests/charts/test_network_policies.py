"""Every port of every pod is opened by exactly one policy, to those who need it."""

from __future__ import annotations

import pytest
from hanmaru_testing.chart_values import CASES
from hanmaru_testing.helm import Manifest, render

WORKLOADS = ("Deployment", "StatefulSet")
METRICS = {"hanmaru-gateway": {9090}, "hanmaru-operator": {9080}}
"""Ports that only the namespaces of `monitoring.namespaceLabels` reach."""


def policies_of(made: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    """Those that select a pod and open something, or nothing but for this component."""
    policies = [m["spec"] | {"name": m["metadata"]["name"]} for m in made if m["kind"] == "NetworkPolicy"]
    return [
        policy
        for policy in policies
        if policy["podSelector"] and policy["podSelector"]["matchLabels"].items() <= labels.items()
    ]


@pytest.mark.parametrize("case", CASES)
def test_each_pod_has_one_policy_beside_the_one_that_denies(case: str) -> None:
    files, values = CASES[case]
    made = render(values, files=files)
    (deny,) = [m for m in made if m["kind"] == "NetworkPolicy" and m["spec"]["podSelector"] == {}]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for workload in (m for m in made if m["kind"] in WORKLOADS):
        template = workload["spec"]["template"]
        (policy,) = policies_of(made, template["metadata"]["labels"])
        listened = {port["containerPort"] for c in template["spec"]["containers"] for port in c.get("ports", ())}
        rules = policy["ingress"] or ()
        opened = [port["port"] for rule in rules for port in rule["ports"]]
        assert len(set(opened)) == len(opened)
        # Where whatever there is is on, nothing that listens may be closed; elsewhere metrics are nobody's.
        metrics = set() if case == "everything" else METRICS.get(workload["metadata"]["name"], set())
        assert listened - metrics <= set(opened) <= listened, workload["metadata"]["name"]
        assert "Ingress" in policy["policyTypes"]


def test_redis_hears_its_three_roles_and_asks_nobody() -> None:
    made = render()
    (policy,) = [m["spec"] for m in made if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "hanmaru-redis"]
    (rule,) = policy["ingress"]
    components = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"]]
    assert sorted(components) == ["gateway", "operator", "worker"]
    assert [peer for peer in rule["from"] if peer.get("namespaceSelector") == {}] == [rule["from"][-1]]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy


def test_nobody_fetches_metrics_unless_their_namespace_is_named() -> None:
    (closed,) = [m for m in render() if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "hanmaru-operator"]
    assert closed["spec"]["ingress"] == []
    labels = {"kubernetes.io/metadata.name": "monitoring"}
    made = render({"monitoring": {"namespaceLabels": labels}})
    (open_,) = [m for m in made if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "hanmaru-operator"]
    assert open_["spec"]["ingress"] == [
        {"from": [{"namespaceSelector": {"matchLabels": labels}}], "ports": [{"port": 9080, "protocol": "TCP"}]}
    ]


def test_policies_can_be_left_out_whole_or_as_far_as_they_touch_others() -> None:
    def names(values: dict[str, object]) -> set[str]:
        made = render({"networkPolicies": values})
        return {m["metadata"]["name"] for m in made if m["kind"] == "NetworkPolicy"}

    assert names({"enabled": False}) == set()
    assert "hanmaru-default-deny" not in names({"defaultDeny": False})
    assert "hanmaru-redis" in names({"defaultDeny": False})
