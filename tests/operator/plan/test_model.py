"""Parameters and bytes of the shipped configurations agree with what their makers publish."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.plan.model import MAX_JSON_BYTES, MAX_LAYERS, ModelFacts, WeightClass
from hanmaru_testing.planning import CONFIGS, model
from hypothesis import given
from hypothesis import strategies as st

BILLION = 1e9


def test_k_exaone_has_the_parameters_its_report_names() -> None:
    facts = model("k-exaone")
    assert round(facts.total_parameters / BILLION, 2) == 236.57
    assert round(facts.active_parameters / BILLION, 2) == 23.67
    assert round(facts.parameters()[WeightClass.MTP] / BILLION, 2) == 0.53


@pytest.mark.parametrize(
    ("name", "billion_bytes", "tolerance"),
    [("k-exaone", 474, 1), ("k-exaone-fp8", 245, 1), ("tiny", 0.0092, 0.0001)],
)
def test_weights_take_the_bytes_of_the_published_checkpoints(name: str, billion_bytes: float, tolerance: float) -> None:
    assert sum(model(name).weight_bytes().values()) / BILLION == pytest.approx(billion_bytes, abs=tolerance)


def test_the_committed_checkpoint_has_as_many_bytes_as_counted() -> None:
    file = CONFIGS["tiny"].parent / "model.safetensors"
    assert sum(model("tiny").weight_bytes().values()) == pytest.approx(file.stat().st_size, rel=0.01)


def test_the_successors_shape_is_read_without_knowing_it() -> None:
    facts = model("k-exaone-2")
    assert (facts.layers, facts.mtp_layers, facts.global_layers) == (78, 4, 19)
    assert facts.windows[:4] == (128, 4096, 128, None)
    assert facts.widest_window == 4096
    assert facts.total_parameters / BILLION == pytest.approx(750, rel=0.01)
    assert facts.active_parameters / BILLION == pytest.approx(37, rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_facts_survive_a_pods_termination_message(name: str) -> None:
    text = model(name).to_json()
    assert len(text) < 1024
    assert ModelFacts.from_json(text) == model(name)


@given(
    windows=st.lists(st.one_of(st.none(), st.integers(1, 50)), min_size=1, max_size=MAX_LAYERS),
    drafting=st.lists(st.one_of(st.none(), st.integers(1, 50)), max_size=64),
)
def test_the_largest_facts_fit_the_message(windows: list[int | None], drafting: list[int | None]) -> None:
    facts = dataclasses.replace(
        model("k-exaone"),
        architecture="A" * 128,
        model_type="m" * 64,
        licence="l" * 200,
        windows=tuple(windows),
        mtp_windows=tuple(drafting),
        sparse=(True,) * len(windows),
        unquantised=frozenset(WeightClass),
    )
    text = facts.to_json()
    assert len(text) <= MAX_JSON_BYTES // 2
    assert ModelFacts.from_json(text) == facts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"architecture": 1}',
        "[" * 5000,
        json.dumps({"windows": {"sizes": [], "layers": "A"}}),
    ],
)
def test_what_is_no_message_of_ours_is_refused(text: str) -> None:
    with pytest.raises(HanmaruError, match="no model facts") as refused:
        ModelFacts.from_json(text)
    assert refused.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "int3"), ("hidden", "many"), ("unquantised", ["ears"]), ("windows", {"sizes": [None], "layers": "AB"})],
)
def test_a_message_with_one_wrong_field_is_refused(field: str, value: object) -> None:
    found = json.loads(model("tiny").to_json()) | {field: value}
    with pytest.raises(HanmaruError, match="no model facts"):
        ModelFacts.from_json(json.dumps(found))
