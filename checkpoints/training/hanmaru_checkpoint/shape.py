"""The shape of the tiny K-EXAONE checkpoint: every width, id and count, written once.

Read by the model, the exporter, the tokenizer and the tests. It decides no training setting.
The numbers keep what the engine must handle in the real model (`LLLG`, a window of 128, a dense first layer,
sigmoid-routed experts with a shared one, QK-norm, one MTP block) and shrink only widths, so that bf16 weights stay
under 10 MB.
KV heads, experts, vocabulary and expert width are divisible by 2: the checkpoint must run with two ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAD_ID = 0
BOS_ID = 1
END_OF_TURN_ID = 53
"""Ids of the real model; engine and clients stop at `END_OF_TURN_ID`."""

GLOBAL_EVERY = 4
"""`LLLG`: every fourth layer attends to everything and has no positions."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and counts of one checkpoint; the defaults are the committed one."""

    num_layers: int = 8
    vocab_size: int = 3072
    hidden_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    dense_size: int = 512
    expert_size: int = 64
    num_experts: int = 16
    experts_per_token: int = 4
    num_shared_experts: int = 1
    routed_scaling: float = 2.5
    sliding_window: int = 128
    """Keys a sliding layer attends: the token itself and the 127 before it."""
    rope_theta: float = 1_000_000.0
    """The engine reads no other value from configurations in the transformers 5 form, so keep the real model's."""
    rms_eps: float = 1e-5
    max_positions: int = 32_768

    @property
    def is_grown(self) -> bool:
        """Whether it is deeper than the committed one."""
        return self.num_layers != Shape().num_layers

    def is_sliding(self, layer: int) -> bool:
        """Whether the layer attends to a window, with positions; the others see everything, without."""
        return (layer + 1) % GLOBAL_EVERY != 0

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has experts."""
        return layer > 0


def config_json(shape: Shape) -> dict[str, Any]:
    """`config.json` that SGLang and transformers read unchanged.

    `is_moe_layer` is what SGLang reads, `mlp_layer_types` what transformers 5 reads; both say the same.
    """
    layers = range(shape.num_layers)
    return {
        "architectures": ["ExaoneMoEForCausalLM"],
        "model_type": "exaone_moe",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "intermediate_size": shape.dense_size,
        "moe_intermediate_size": shape.expert_size,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token,
        "num_shared_experts": shape.num_shared_experts,
        "first_k_dense_replace": 1,
        "is_moe_layer": [shape.is_sparse(i) for i in layers],
        "mlp_layer_types": ["sparse" if shape.is_sparse(i) else "dense" for i in layers],
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": shape.routed_scaling,
        "n_group": 1,
        "topk_group": 1,
        "sliding_window": shape.sliding_window,
        "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention" if shape.is_sliding(i) else "full_attention" for i in layers],
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.rms_eps,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "num_nextn_predict_layers": 1,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_OF_TURN_ID,
        "pad_token_id": PAD_ID,
    }
