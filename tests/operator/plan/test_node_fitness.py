"""Nodes that promise more than they have are told from nodes that are merely busy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hanmaru_operator.plan.node_fitness import fit_nodes, node_refusal, pool_refusal
from hanmaru_operator.plan.refusal import Reason
from hanmaru_operator.types import NodeFacts, NodeName
from hanmaru_testing.planning import engine_pool

GPU = "nvidia.com/gpu"
WHOLE = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.memory": "81920",
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/gpu.sharing-strategy": "none",
    "nvidia.com/mig.capable": "true",
    "nvidia.com/mig.strategy": "single",
    "nvidia.com/mig.config": "all-disabled",
}


def node(labels: Mapping[str, str] = WHOLE, name: str = "n1", **allocatable: float) -> NodeFacts:
    offered = {GPU: 8.0} | {key.replace("__", "/").replace("_", "."): value for key, value in allocatable.items()}
    return NodeFacts(NodeName(name), labels, offered, is_ready=True, is_schedulable=True)


@pytest.mark.parametrize(
    "labels",
    [WHOLE, {}, WHOLE | {"nvidia.com/gpu.memory": "81559"}, WHOLE | {"nvidia.com/mig.strategy": "mixed"}],
    ids=["as NVIDIA's operator labels it", "without labels", "another driver", "mixed strategy without slices"],
)
def test_a_node_with_whole_gpus_is_fit(labels: dict[str, str]) -> None:
    assert node_refusal(node(labels), engine_pool(), 8) is None


@pytest.mark.parametrize(
    ("labels", "reason", "said"),
    [
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"}, Reason.MIG_SLICES, "MIG-3g.40gb"),
        ({"nvidia.com/gpu.slices.gi": "3"}, Reason.MIG_SLICES, "gpu.slices.gi=3"),
        ({"nvidia.com/mig.config": "all-1g.10gb"}, Reason.MIG_SLICES, "all-1g.10gb"),
        (
            {"nvidia.com/mig.strategy": "mixed", "nvidia.com/mig-1g.5gb.count": "4"},
            Reason.MIG_SLICES,
            "mig-1g.5gb",
        ),
        ({"nvidia.com/gpu.sharing-strategy": "time-slicing"}, Reason.SHARED_DEVICES, "time-slicing"),
        ({"nvidia.com/gpu.sharing-strategy": "mps"}, Reason.SHARED_DEVICES, "mps"),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED"}, Reason.SHARED_DEVICES, "-SHARED"),
        ({"nvidia.com/gpu.replicas": "4"}, Reason.SHARED_DEVICES, "gpu.replicas=4"),
        ({"nvidia.com/gpu.count": "2"}, Reason.SHARED_DEVICES, "offers 8 and has 2"),
        ({"nvidia.com/gpu.memory": "40960"}, Reason.SMALLER_DEVICES, "40960 MiB and the pool says 81920"),
    ],
)
def test_a_node_that_promises_more_than_it_has_is_refused(labels: dict[str, str], reason: Reason, said: str) -> None:
    found = node_refusal(node({**WHOLE, **labels}), engine_pool(), 8)
    assert found is not None
    assert found.reason is reason
    assert said in found.message
    assert "n1" in found.message


@pytest.mark.parametrize(
    ("resource", "reason"), [("nvidia.com/mig-1g.10gb", Reason.MIG_SLICES), (f"{GPU}.shared", Reason.SHARED_DEVICES)]
)
def test_slices_beside_the_gpus_are_seen_too(resource: str, reason: Reason) -> None:
    facts = NodeFacts(NodeName("n"), {}, {GPU: 8.0, resource: 2.0}, is_ready=True, is_schedulable=True)
    found = node_refusal(facts, engine_pool(), 8)
    assert found is not None
    assert found.reason is reason


def test_seven_devices_of_eight_are_seven() -> None:
    seven = NodeFacts(NodeName("n7"), WHOLE, {GPU: 7.0}, is_ready=True, is_schedulable=True)
    found = node_refusal(seven, engine_pool(), 8)
    assert found is not None
    assert found.reason is Reason.FEWER_DEVICES
    assert "offers 7 of 8" in found.message
    assert node_refusal(seven, engine_pool(), 4) is None


def test_a_node_that_is_full_or_cordoned_stays_fit() -> None:
    busy = NodeFacts(NodeName("n"), WHOLE, {GPU: 8.0}, is_ready=False, is_schedulable=False)
    usable, unfit = fit_nodes([busy], engine_pool(), 8)
    assert usable == (busy,)
    assert unfit == ()


def test_labels_of_gpus_mean_nothing_on_other_pools() -> None:
    npu = NodeFacts(
        NodeName("n"), {"nvidia.com/gpu.replicas": "4"}, {"furiosa.ai/rngd": 8.0}, is_ready=True, is_schedulable=True
    )
    assert node_refusal(npu, engine_pool("48Gi", resource="furiosa.ai/rngd"), 8) is None


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        ("nvidia.com/mig-3g.40gb", Reason.MIG_SLICES),
        ("nvidia.com/gpu.shared", Reason.SHARED_DEVICES),
        ("nvidia.com/gpu", None),
        ("cpu", None),
    ],
)
def test_a_pool_of_parts_of_devices_is_refused(resource: str, reason: Reason | None) -> None:
    found = pool_refusal(engine_pool(resource=resource))
    assert (found.reason if found else None) is reason


def test_a_hostile_label_is_no_number() -> None:
    labels = {"nvidia.com/gpu.replicas": "9" * 5000, "nvidia.com/gpu.memory": "-1", "nvidia.com/gpu.count": "³"}
    assert node_refusal(node(labels), engine_pool(), 8) is None
