from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.pool_checks import check_pools
from hanmaru_testing.doctor_world import GPU, listed, named, node, pool, unseen, words, world, worst

TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
TOLERATIONS = {
    "selectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}],
    "tolerations": [{"key": GPU, "operator": "Exists"}],
}


def not_ready(name: str) -> Any:
    one = node(name)
    return msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, conditions=()))


@pytest.mark.parametrize(
    ("nodes", "mark", "said"),
    [
        ([node("a"), node("b")], Mark.OK, ""),
        ([], Mark.FAIL, "no node matches"),
        ([node("a", labels={"zone": "y"})], Mark.FAIL, "no node matches"),
        ([node("a", gpus="0")], Mark.FAIL, "GPU operator"),
        ([node("a"), node("b", gpus="7")], Mark.WARN, "b offers 7 of 8"),
        ([node("a", gpus="7")], Mark.FAIL, "a offers 7 of 8"),
        ([node("a", labels={"nvidia.com/gpu.replicas": "4"})], Mark.FAIL, "shares its GPUs"),
        ([node("a", labels={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"})], Mark.FAIL, "MIG"),
        ([node("a", labels={"nvidia.com/gpu.memory": "40960"})], Mark.FAIL, "40960 MiB"),
        ([node("a"), node("b", unschedulable=True)], Mark.WARN, "kubectl uncordon b"),
        ([node("a"), not_ready("b")], Mark.WARN, "not ready: b"),
        ([node("a", taints=[TAINT])], Mark.FAIL, f"{GPU}=present:NoSchedule"),
        ([node("a", labels={"nvidia.com/cuda.driver-version.major": "535"})], Mark.WARN, "driver 535"),
        ([node("a", taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])], Mark.OK, ""),
    ],
)
def test_what_is_wrong_with_a_pools_nodes_is_named(nodes: list[Any], mark: Mark, said: str) -> None:
    findings = check_pools(world(nodes=listed(*nodes)))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


@pytest.mark.parametrize(
    ("spec", "classes", "mark", "said"),
    [
        ({"nodes": TOLERATIONS}, [], Mark.OK, ""),
        ({"podTemplate": {"spec": {"runtimeClassName": "nvidia"}}}, ["nvidia"], Mark.OK, ""),
        ({"podTemplate": {"spec": {"runtimeClassName": "nvidai"}}}, ["nvidia"], Mark.FAIL, "one of: nvidia"),
        ({}, ["nvidia"], Mark.NOTE, "runtimeClassName: nvidia"),
        ({"topology": {"domainKey": "rack"}}, [], Mark.WARN, "without the label rack"),
        ({"devices": {"resource": {"name": "nvidia.com/mig-1g.10gb"}, "memory": "10Gi", "perNode": 7}}, [], Mark.FAIL,
         "slice of a GPU"),
        ({"devices": "many"}, [], Mark.WARN, "cannot read it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pools_own_words_is_named(
    spec: dict[str, Any], classes: list[str], mark: Mark, said: str
) -> None:
    nodes = listed(node(taints=[TAINT])) if "nodes" in spec else listed(node())
    seen = world(pools=listed(pool(**spec)), nodes=nodes, runtime_classes=listed(*map(named, classes)))
    findings = check_pools(seen)
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_nodes_without_feature_discovery_cannot_be_judged() -> None:
    bare = node("a")
    bare = msgspec.structs.replace(bare, metadata=msgspec.structs.replace(bare.metadata, labels={"zone": "x"}))
    assert "GPU feature discovery" in words(check_pools(world(nodes=listed(bare))))


def test_a_pool_whose_nodes_an_older_one_has_is_told_so() -> None:
    findings = check_pools(world(pools=listed(pool("a"), pool("b"))))
    assert [(f.subject, f.mark) for f in findings if "older pools" in f.seen] == [("ap/b", Mark.WARN),
                                                                                ("ap/b", Mark.FAIL)]  # fmt: skip


def test_without_nodes_to_see_nothing_is_said_of_devices() -> None:
    findings = check_pools(world(nodes=unseen()))
    assert [finding.mark for finding in findings] == [Mark.UNSEEN, Mark.OK]
