"""A `config.json` comes from outside: every shape we know is read, and everything broken names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.plan.config_json import MAX_CONFIG_BYTES, read_config, read_model
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_testing.planning import config
from hypothesis import given
from hypothesis import strategies as st

L, G = 128, None


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """A configuration with fields set, or removed where the value is `...`."""
    merged = config(name) | fields
    return {key: value for key, value in merged.items() if value is not ...}


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, (L, L, L, G, L, L, L, G)),
        ({"layer_types": ...}, (L, L, L, G, L, L, L, G)),
        ({"layer_types": ..., "sliding_window_pattern": 4}, (L, L, L, G, L, L, L, G)),
        ({"layer_types": ..., "sliding_window_pattern": "LG"}, (L, G, L, G, L, G, L, G)),
        ({"layer_types": ..., "sliding_window_pattern": ...}, (L,) * 8),
        ({"layer_types": ..., "sliding_window_pattern": 0}, (L,) * 8),
        ({"layer_types": ..., "use_sliding_window": False}, (G,) * 8),
        ({"layer_types": ..., "sliding_window": None}, (G,) * 8),
        ({"sliding_windows": [128, 4096, 0, -1, None, 64, 64, 64]}, (128, 4096, None, None, None, 64, 64, 64)),
    ],
)
def test_each_way_to_describe_windows_is_read(fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read_config(changed("tiny", **fields)).windows == windows


@pytest.mark.parametrize(
    ("fields", "windows"),
    [({}, (128,)), ({"num_nextn_predict_layers": 0}, ()), ({"sliding_windows": [128] * 8 + [None]}, (None,))],
)
def test_a_drafting_layer_is_like_layer_0_unless_the_list_goes_on(
    fields: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert read_config(changed("tiny", **fields)).mtp_windows == windows


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({"mlp_layer_types": ...}, 7),
        ({"is_moe_layer": ...}, 7),
        ({"is_moe_layer": ..., "mlp_layer_types": ..., "first_k_dense_replace": 3}, 5),
        ({"is_moe_layer": ..., "mlp_layer_types": ..., "first_k_dense_replace": ...}, 8),
        ({"is_moe_layer": [False] * 8, "mlp_layer_types": ...}, 0),
    ],
)
def test_each_way_to_name_sparse_layers_is_read(fields: dict[str, Any], sparse: int) -> None:
    assert read_config(changed("tiny", **fields)).sparse.count(True) == sparse


def test_a_dense_model_with_few_fields_is_read() -> None:
    facts = read_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "torch_dtype": "float16",
        }
    )
    assert (facts.kv_heads, facts.head_dim, facts.experts, facts.dtype) == (32, 128, 0, "float16")
    assert facts.global_layers == 32
    assert facts.licence is None


def test_a_text_config_inside_is_read() -> None:
    inner = changed("tiny", architectures=...)
    assert read_config({"architectures": ["X"], "text_config": inner}).hidden == 128


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({}, "K-EXAONE AI Model License"),
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license_name": "exaone", "license": "other"}, "exaone"),
        ({"model_type": "llama"}, None),
    ],
)
def test_the_licence_is_the_files_or_that_of_the_family(fields: dict[str, Any], licence: str | None) -> None:
    assert read_config(changed("tiny", **fields)).licence == licence


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": ...}, "has no hidden_size"),
        ({"hidden_size": -1}, "hidden_size=-1"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": 1 << 40}, "from 1 to"),
        ({"hidden_size": 128.0}, "hidden_size=128.0"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"hidden_size": "128"}, "hidden_size='128'"),
        ({"hidden_size": 10**4000}, "more than 30 digits"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers=100000"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide"),
        ({"num_attention_heads": []}, "a list with 0 entries"),
        ({"vocab_size": None}, "has no vocab_size"),
        ({"max_position_embeddings": "a" * 9999}, "max_position_embeddings='aaa"),
        ({"num_experts": ...}, "sparse layers and no num_experts"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok=17 is more than"),
        ({"moe_intermediate_size": -5}, "moe_intermediate_size=-5"),
        ({"intermediate_size": ...}, "has no intermediate_size"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 1 entries"),
        ({"layer_types": ["linear_attention"] * 8}, "layer_types has 'linear_attention'"),
        ({"layer_types": "LLLG"}, "layer_types='LLLG'"),
        ({"sliding_window": ...}, "sliding_window is absent"),
        ({"sliding_window": 0}, "sliding_window=0"),
        ({"layer_types": ..., "sliding_window_pattern": "XY"}, "sliding_window_pattern='XY'"),
        ({"layer_types": ..., "sliding_window_pattern": True}, "sliding_window_pattern=True"),
        ({"sliding_windows": [128] * 7}, "sliding_windows has 7 entries"),
        ({"sliding_windows": [128] * 12}, "expected 8, or 9 with MTP"),
        ({"sliding_windows": [-2] * 8}, "sliding_windows has -2"),
        ({"sliding_windows": [128] * 100_000}, "sliding_windows has 100000 entries"),
        ({"is_moe_layer": [1] * 8}, "is_moe_layer has something else"),
        ({"is_moe_layer": ..., "mlp_layer_types": ["moe"] * 8}, "mlp_layer_types has 'moe'"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"dtype": ["bfloat16"]}, "dtype=a list"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
        ({"architectures": []}, "architectures=a list with 0"),
        ({"architectures": [{}]}, "architectures=a list with 1"),
        ({"architectures": ["한"]}, "architectures="),
        ({"model_type": "x" * 65}, "model_type="),
        ({"license": "line\nbreak"}, "license="),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"mamba_d_state": 16}, "state-space"),
        ({"num_nextn_predict_layers": 9999}, "num_nextn_predict_layers=9999"),
    ],
)
def test_a_broken_file_names_its_field_in_a_short_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(HanmaruError) as refused:
        read_config(changed("tiny", **fields))
    assert said in refused.value.message
    assert refused.value.code is ErrorCode.CONFIGURATION
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds None"),
        (b" " * (MAX_CONFIG_BYTES + 1), f"expected at most {MAX_CONFIG_BYTES}"),
    ],
    ids=["empty", "html", "bytes", "deep", "digits", "list", "null", "huge"],
)
def test_what_is_no_configuration_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(HanmaruError, match=said):
        read_model(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@given(field=st.sampled_from(sorted(config("k-exaone-fp8"))), value=_JSON)
def test_no_single_value_does_more_than_refuse(field: str, value: Any) -> None:
    text = json.dumps(config("k-exaone-fp8") | {field: value})
    refusal = None
    try:
        facts = read_model(text)
    except HanmaruError as refused:
        refusal = refused
    if refusal is None:
        assert ModelFacts.from_json(facts.to_json()) == facts
    else:
        assert refusal.code is ErrorCode.CONFIGURATION
        assert len(refusal.message) < 400
