"""What SGLang must know of a K-EXAONE configuration and does not read from it; pure.

`hooks.py` applies it to the configuration objects and layers that SGLang builds. Upstream disables the hybrid
KV memory for this family and gives the layers a window one token too wide; the answers here come from
`layer_types` and `sliding_window`, so no flag and no shape is written down anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ARCHITECTURES = ("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM")
"""As checkpoints spell it, and as transformers 5 does."""

MODEL_TYPE = "exaone_moe"


def hybrid_layer_pattern(layer_types: Sequence[str], num_hidden_layers: int) -> list[int]:
    """1 for each sliding layer and 0 for each full one: the form in which SGLang accepts a hybrid model."""
    if len(layer_types) < num_hidden_layers:
        raise ValueError(
            f"layer_types names {len(layer_types)} layers and num_hidden_layers is {num_hidden_layers};"
            " the checkpoint's config.json must name every layer"
        )
    known = {"sliding_attention": 1, "full_attention": 0}
    unknown = sorted(set(layer_types) - known.keys())
    if unknown:
        raise ValueError(f"layer_types has {', '.join(unknown)}; known are {', '.join(known)}")
    return [known[kind] for kind in layer_types]


def sparse_layers(config: Mapping[str, object]) -> list[bool] | None:
    """`is_moe_layer` for a config that may have `mlp_layer_types` instead; None when it has neither."""
    listed = config.get("is_moe_layer")
    if isinstance(listed, list | tuple):
        return [bool(value) for value in listed]
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, list | tuple):
        return [kind == "sparse" for kind in kinds]
    return None


def keys_before(sliding_window: int) -> int:
    """What an SGLang attention layer is to be given for a window of `sliding_window` tokens.

    Its backends keep keys with `k >= q - size`, the model's window counts the query itself.
    """
    return sliding_window - 1


HYBRID_ATTENTION_BACKENDS = ("fa3", "triton", "trtllm_mha")
"""Backends of SGLang that read sliding layers from the sliding pool: its own list for this family."""


def check_attention_backends(chosen: Sequence[str]) -> None:
    """Raise on a backend that would run and answer wrongly, as upstream's `torch_native` does under pressure."""
    unfit = sorted(set(chosen) - set(HYBRID_ATTENTION_BACKENDS))
    if unfit:
        raise ValueError(
            f"--attention-backend {', '.join(unfit)} cannot serve sliding-window layers of this model from a pool of"
            f" their own; use one of {', '.join(HYBRID_ATTENTION_BACKENDS)}, or none"
        )


def default_attention_backend(cuda_capability: int | None, *, is_sm100: bool) -> str:
    """What upstream picks for this family on an accelerator of its own.

    `cuda_capability` is 80 for 8.0, and None where the accelerator is not NVIDIA's.
    """
    if is_sm100 and cuda_capability is not None:
        return "trtllm_mha"
    return "fa3" if cuda_capability is not None and cuda_capability >= 80 else "triton"
