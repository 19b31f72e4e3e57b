from __future__ import annotations

from typing import Any

import pytest
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.namespace_checks import ENFORCE, check_namespaces
from hanmaru_testing.doctor_world import listed, named, policy, pool, words, world, worst

LOCK = {"containers": [{"name": "engine", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}]}


@pytest.mark.parametrize(
    ("level", "spec", "mark", "said"),
    [
        ("restricted", {}, Mark.OK, ""),
        ("restricted", LOCK, Mark.FAIL, "IPC_LOCK"),
        ("baseline", LOCK, Mark.FAIL, "IPC_LOCK"),
        ("privileged", LOCK, Mark.OK, ""),
        ("", LOCK, Mark.OK, ""),
        ("baseline", {"hostIPC": True}, Mark.FAIL, "hostIPC"),
        ("baseline", {"volumes": [{"name": "x", "hostPath": {"path": "/dev/infiniband"}}]}, Mark.FAIL, "/dev/infini"),
        ("baseline", {"containers": [{"name": "e", "securityContext": {"runAsNonRoot": False}}]}, Mark.OK, ""),
    ],
)
def test_a_level_that_would_refuse_a_pools_pods_is_named(
    level: str, spec: dict[str, Any], mark: Mark, said: str
) -> None:
    namespaces = listed(named("models", **{ENFORCE: level}))
    pools = listed(pool(podTemplate={"spec": spec}))
    findings = check_namespaces(world(namespaces=namespaces, pools=pools))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


DNS = {"ports": [{"port": 53, "protocol": "UDP"}]}


@pytest.mark.parametrize(
    ("policies", "mark"),
    [
        ([], Mark.OK),
        ([policy()], Mark.FAIL),
        ([policy(DNS)], Mark.OK),
        ([policy({"to": []})], Mark.OK),
        ([policy(), policy(DNS)], Mark.OK),
        ([policy({"ports": [{"port": 6379}]})], Mark.FAIL),
        ([policy({"ports": [{"port": 1, "endPort": 100}]})], Mark.OK),
        ([policy({"ports": [{"port": "dns-tcp"}]})], Mark.OK),
        ([policy(match={"app": "other"})], Mark.OK),
    ],
)
def test_workers_that_cannot_ask_for_names_are_said(policies: list[Any], mark: Mark) -> None:
    assert worst(check_namespaces(world(policies=listed(*policies)))) is mark


def test_nobody_can_know_whether_policies_are_enforced_and_that_is_said() -> None:
    findings = check_namespaces(world(daemons=listed(named("kube-proxy", "kube-system"))))
    assert (worst(findings), "unknown" in words(findings)) == (Mark.NOTE, True)
