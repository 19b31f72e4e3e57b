"""An engine's spec is read strictly: a typing error must not start a differently shaped engine."""

from __future__ import annotations

import json

import pytest
from hanmaru_contracts.wire.engine_spec import EngineSpec
from pydantic import ValidationError

SMALLEST: dict[str, object] = {
    "model": {"namespace": "default", "name": "k"},
    "route": "k",
    "checkpoint": "/models/k",
    "contextTokens": 32768,
}


def test_the_smallest_spec_says_everything_else_by_default() -> None:
    spec = EngineSpec.model_validate(SMALLEST)
    assert (spec.engine, spec.device, spec.parallelism.tensor) == ("SGLang", "cpu", 1)
    assert spec.model.id == "default/k"


def test_a_spec_survives_its_file() -> None:
    spec = EngineSpec.model_validate(
        SMALLEST | {"parallelism": {"tensor": 4, "expert": 2}, "traceEndpoint": "http://x:4317"}
    )
    text = spec.model_dump_json(by_alias=True)
    assert EngineSpec.model_validate_json(text) == spec
    assert {"contextTokens", "kvCache", "traceEndpoint"} <= json.loads(text).keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contextToken": 5}, "Extra inputs"),
        ({"contextTokens": 0}, "greater than 0"),
        ({"contextTokens": "many"}, "integer"),
        ({"engine": "sglang"}, "SGLang"),
        ({"device": "tpu"}, "cpu"),
        ({"parallelism": {"tensor": 4, "expert": 3}}, "expert=3 does not divide tensor=4"),
        ({"parallelism": {"tensor": 4, "data": 3}}, "data=3 does not divide tensor=4"),
        ({"parallelism": {"tensor": 0}}, "greater than 0"),
        ({"kvCache": {"memoryFraction": 1}}, "less than 1"),
        ({"kvCache": {"slidingTokensRatio": 0}}, "greater than 0"),
        ({"drainTimeoutS": -1}, "greater than or equal"),
        ({"startupTimeoutS": float("nan")}, "greater than 0"),
        ({"model": {"namespace": "default", "name": "K!"}}, "pattern"),
    ],
)
def test_a_spec_that_is_wrong_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EngineSpec.model_validate(SMALLEST | change)


@pytest.mark.parametrize("field", SMALLEST)
def test_what_has_no_default_must_be_said(field: str) -> None:
    with pytest.raises(ValidationError, match="required"):
        EngineSpec.model_validate({name: value for name, value in SMALLEST.items() if name != field})
