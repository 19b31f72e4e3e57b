"""What is derived from a K-EXAONE configuration."""

from __future__ import annotations

import pytest
from hanmaru_worker.plugin import exaone

LLLG = ["sliding_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize(
    ("layer_types", "layers", "pattern"),
    [
        (LLLG * 2, 8, [1, 1, 1, 0, 1, 1, 1, 0]),
        (["full_attention", "sliding_attention"], 2, [0, 1]),
        # Checkpoints may name the MTP block after the main layers.
        ([*LLLG, "sliding_attention"], 4, [1, 1, 1, 0, 1]),
    ],
)
def test_the_pattern_follows_layer_types(layer_types: list[str], layers: int, pattern: list[int]) -> None:
    assert exaone.hybrid_layer_pattern(layer_types, layers) == pattern


@pytest.mark.parametrize(
    ("layer_types", "layers", "said"),
    [(LLLG, 8, "names 4 layers and num_hidden_layers is 8"), (["linear_attention"], 1, "linear_attention")],
)
def test_a_layout_that_cannot_be_served_is_refused_by_name(layer_types: list[str], layers: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        exaone.hybrid_layer_pattern(layer_types, layers)


@pytest.mark.parametrize(
    ("config", "sparse"),
    [
        ({"is_moe_layer": [False, True]}, [False, True]),
        ({"is_moe_layer": [0, 1], "mlp_layer_types": ["sparse", "sparse"]}, [False, True]),
        ({"mlp_layer_types": ["dense", "sparse"]}, [False, True]),
        ({"is_moe_layer": None, "mlp_layer_types": ("dense",)}, [False]),
        ({}, None),
    ],
)
def test_sparse_layers_are_read_from_either_spelling(config: dict[str, object], sparse: list[bool] | None) -> None:
    assert exaone.sparse_layers(config) == sparse


def test_a_window_of_128_tokens_is_the_query_and_127_before_it() -> None:
    assert exaone.keys_before(128) == 127


def test_a_backend_that_reads_the_wrong_pool_is_refused_with_the_ones_that_do_not() -> None:
    exaone.check_attention_backends([])
    exaone.check_attention_backends(["fa3", "triton"])
    with pytest.raises(
        ValueError, match=r"flashinfer, torch_native cannot serve .* use one of fa3, triton, trtllm_mha"
    ):
        exaone.check_attention_backends(["torch_native", "fa3", "flashinfer"])


@pytest.mark.parametrize(
    ("capability", "is_sm100", "backend"),
    [(100, True, "trtllm_mha"), (90, False, "fa3"), (80, False, "fa3"), (75, False, "triton"), (None, False, "triton")],
)
def test_the_default_backend_is_upstreams_for_this_family(capability: int | None, is_sm100: bool, backend: str) -> None:
    assert exaone.default_attention_backend(capability, is_sm100=is_sm100) == backend
