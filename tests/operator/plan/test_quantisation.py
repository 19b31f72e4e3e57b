"""What quantised weights take, by each published way to say so."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator.plan.model import NEVER_QUANTISED, WeightClass
from hanmaru_operator.plan.quantisation import read_quantisation


def compressed(bits: object = 8, kind: object = "float", **more: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind}}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


@pytest.mark.parametrize(
    ("found", "name", "bits"),
    [
        (None, "bfloat16", 16.0),
        ({"quant_method": "fp8"}, "fp8", 8.0),
        (compressed(), "fp8", 8.0),
        (compressed(8, "int"), "int8", 8.1),
        (compressed(4, "float"), "nvfp4", 4.5),
        (compressed(4, "int"), "int4", 4.2),
        ({"quant_method": "gptq", "bits": 4}, "int4", 4.2),
        ({"quant_method": "awq"}, "int4", 4.2),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4.5),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25),
    ],
)
def test_each_published_method_has_its_name_and_bits(found: Any, name: str, bits: float) -> None:
    read = read_quantisation(found, "bfloat16")
    assert read.name == name
    assert read.bits == pytest.approx(bits, abs=0.06)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("re:.*self_attn.*", WeightClass.ATTENTION),
        (r"re:model\.layers\.\d+\.self_attn\.q_proj", WeightClass.ATTENTION),
        ("model.layers.0.mlp.gate_proj", WeightClass.DENSE),
        ("model.layers.3.mlp.shared_experts.up_proj", WeightClass.SHARED_EXPERTS),
        (r"re:.*mlp\.experts\..*", WeightClass.ROUTED_EXPERTS),
        ("mtp.layers.0", WeightClass.MTP),
    ],
)
def test_a_part_that_one_entry_names_counts_as_whole(entry: str, part: WeightClass) -> None:
    assert read_quantisation(compressed(ignore=[entry, "lm_head"]), "bfloat16").unquantised == {part, *NEVER_QUANTISED}


def test_expressions_from_outside_are_never_run() -> None:
    assert read_quantisation(compressed(ignore=["re:(a+)+$" * 1000, 7, None]), "bfloat16").name == "fp8"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "is a list"),
        ({}, "quant_method=''"),
        ({"quant_method": "magic"}, "quant_method='magic'"),
        ({"quant_method": "gptq", "bits": 3}, "quant_method='gptq'"),
        (compressed(16), "name no weights"),
        (compressed([8], {}), "name no weights"),
        ({"quant_method": "compressed-tensors", "config_groups": [1]}, "name no weights"),
        (compressed(ignore=["x"] * 20_000), "20000 unquantised modules"),
    ],
)
def test_what_it_does_not_know_it_refuses(found: Any, said: str) -> None:
    with pytest.raises(HanmaruError, match=said):
        read_quantisation(found, "bfloat16")
