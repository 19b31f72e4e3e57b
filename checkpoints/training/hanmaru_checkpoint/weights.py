"""Weights under the checkpoint's names, out of the training model and back into it.

Expert tensors are one a projection and expert, which both SGLang and transformers read. `make.py` saves with it, the
tests load with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hanmaru_checkpoint.model import FeedForward, Layer, Model, SparseFeedForward
from hanmaru_checkpoint.shape import Shape, config_json


def named_weights(model: Model) -> dict[str, Tensor]:
    """Name to tensor; a view of the model's own storage, so that writing to it loads the model."""
    mtp = model.mtp
    named = {
        "model.embed_tokens.weight": model.embedding.data,
        "model.norm.weight": model.norm.weight.data,
        "lm_head.weight": model.head.data,
        "mtp.fc.weight": mtp.fc.data,
        "mtp.pre_fc_norm_embedding.weight": mtp.embedding_norm.weight.data,
        "mtp.pre_fc_norm_hidden.weight": mtp.hidden_norm.weight.data,
        "mtp.norm.weight": mtp.norm.weight.data,
    }
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        named |= _layer(f"model.layers.{i}.", layer, model.shape)
    return named | _layer("mtp.layers.0.", mtp.layer, model.shape)


def round_to_stored(model: Model) -> None:
    """Gives the model the very values that will be stored, so that nothing measured on it changes by saving."""
    for name, tensor in named_weights(model).items():
        tensor.copy_(tensor.to(_stored_dtype(name)).float())


def save_model(model: Model, folder: Path) -> None:
    """`model.safetensors`, `config.json` and `generation_config.json` in `folder`."""
    stored = {name: t.to(_stored_dtype(name)).contiguous() for name, t in named_weights(model).items()}
    path = folder / "model.safetensors"
    save_file(stored, path, metadata={"format": "pt"})
    # It comes readable by its owner alone, and an engine may run as somebody else.
    path.chmod(0o644)
    config = config_json(model.shape)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation |= {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> Model:
    """The model of a checkpoint written by `save_model`, in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Model(Shape(num_layers=config["num_hidden_layers"]))
    stored = load_file(folder / "model.safetensors")
    named = named_weights(model)
    if named.keys() != stored.keys():
        raise ValueError(f"{folder} differs in tensors: {sorted(named.keys() ^ stored.keys())[:4]}")
    for name, tensor in named.items():
        tensor.copy_(stored[name].float())
    return model.eval()


def _stored_dtype(name: str) -> torch.dtype:
    return torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16


def _layer(prefix: str, layer: Layer, shape: Shape) -> dict[str, Tensor]:
    attention = layer.attention
    sizes = [heads * shape.head_dim for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]
    q, k, v = torch.split(attention.qkv.data, sizes)
    named = {
        "input_layernorm.weight": layer.attention_norm.weight.data,
        "post_attention_layernorm.weight": layer.ffn_norm.weight.data,
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": attention.out.data,
        "self_attn.q_norm.weight": attention.q_norm.weight.data,
        "self_attn.k_norm.weight": attention.k_norm.weight.data,
    }
    ffn = layer.ffn
    if isinstance(ffn, SparseFeedForward):
        named |= {"mlp.gate.weight": ffn.gate.data, "mlp.e_score_correction_bias": ffn.bias}
        for e in range(shape.num_experts):
            named |= _swiglu(f"mlp.experts.{e}.", ffn.gate_up.data[e], ffn.down.data[e])
        ffn = ffn.shared
        named |= _swiglu("mlp.shared_experts.", ffn.gate_up.data, ffn.down.data)
    elif isinstance(ffn, FeedForward):
        named |= _swiglu("mlp.", ffn.gate_up.data, ffn.down.data)
    return {prefix + name: tensor for name, tensor in named.items()}


def _swiglu(prefix: str, gate_up: Tensor, down: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return {
        f"{prefix}gate_proj.weight": gate,
        f"{prefix}up_proj.weight": up,
        f"{prefix}down_proj.weight": down,
    }
