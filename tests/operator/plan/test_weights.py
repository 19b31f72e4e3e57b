"""Ranks together hold the checkpoint, plus the copies that splitting costs."""

from __future__ import annotations

import dataclasses

import pytest
from hanmaru_contracts.wire.engine_spec import Parallelism
from hanmaru_operator.plan.model import WeightClass
from hanmaru_operator.plan.weights import replica_weight_bytes, stage_layers, stage_weight_bytes
from hanmaru_testing.planning import CONFIGS, model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("with_mtp", [False, True])
def test_one_rank_holds_what_the_checkpoint_has(name: str, with_mtp: bool) -> None:
    found = model(name).weight_bytes()
    expected = sum(found.values()) - (0 if with_mtp else found[WeightClass.MTP])
    assert stage_weight_bytes(model(name), Parallelism(), 0, with_mtp=with_mtp) == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize(
    ("sizes", "more"),
    [
        (Parallelism(tensor=8), 0.002),
        (Parallelism(tensor=8, expert=8), 0.002),
        (Parallelism(tensor=16), 0.006),
        (Parallelism(tensor=8, pipeline=2), 0.002),
    ],
    ids=str,
)
def test_splitting_costs_little_more_than_router_and_kv_copies(sizes: Parallelism, more: float) -> None:
    whole = replica_weight_bytes(model("k-exaone"), Parallelism(), with_mtp=False)
    split = replica_weight_bytes(model("k-exaone"), sizes, with_mtp=False)
    assert whole < split < whole * (1 + more)


def test_copies_of_the_attention_layers_hold_attention_and_embeddings_again() -> None:
    facts = model("k-exaone")
    once = stage_weight_bytes(facts, Parallelism(tensor=16), 0, with_mtp=False)
    twice = stage_weight_bytes(facts, Parallelism(tensor=16, data=2), 0, with_mtp=False)
    embeddings = facts.weight_bytes()[WeightClass.EMBEDDING]
    assert twice - once > embeddings * 15 / 16


def test_only_the_ends_of_a_pipeline_hold_embeddings_and_head() -> None:
    facts = dataclasses.replace(model("k-exaone"), vocabulary=10_000_000)
    stages = [stage_weight_bytes(facts, Parallelism(pipeline=3), stage, with_mtp=False) for stage in range(3)]
    assert stages[1] < min(stages[0], stages[2])


@pytest.mark.parametrize(("layers", "stages"), [(48, 1), (48, 2), (48, 5), (78, 4), (7, 3), (8, 8)])
def test_stages_share_all_layers_and_the_last_have_one_more(layers: int, stages: int) -> None:
    parts = [stage_layers(layers, stages, stage) for stage in range(stages)]
    assert [layer for part in parts for layer in part] == list(range(layers))
    lengths = [len(part) for part in parts]
    assert lengths == sorted(lengths)
    assert lengths[-1] - lengths[0] <= 1
