"""transformers' own K-EXAONE modules with attention over `two_pools` in place of theirs, and the MTP block.

Everything between two attentions (norms, projections, router, experts, head) is transformers' code on the checkpoint's
weights, so a difference from transformers' own answer is a difference of the pools or of the attention over them. Rows
of all requests of a pass stand behind one another, as in the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.exaone_moe.modeling_exaone_moe import ExaoneMoeDecoderLayer, ExaoneMoeRMSNorm
from two_pools import Pass, Shape

POOLED = "hanmaru_pools"


def attend_in_pools(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: None, **given: Any
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer, with [1, heads, rows, dim]; [1, rows, heads, dim] back."""
    current: Pass = given["current"]
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return current.attend(module.layer_idx, query.contiguous(), key, value, given["scaling"])[None], None


AttentionInterface.register(POOLED, attend_in_pools)


class Draft(nn.Module):
    """The MTP block: a layer like the model's first, over the embedding of a token and the hidden state before it."""

    def __init__(self, config: Any, place: int) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = ExaoneMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = ExaoneMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        layer: Any = ExaoneMoeDecoderLayer(config, 0)
        # It computes as layer 0 does and keeps its keys behind those of the model's last layer.
        layer.self_attn.layer_idx = place
        self.layers = nn.ModuleList([layer])
        self.norm = ExaoneMoeRMSNorm(config.hidden_size, config.rms_norm_eps)


class PooledModel:
    """A checkpoint on one device."""

    def __init__(self, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation=POOLED, experts_implementation="eager"
        )
        self.config = model.config
        self.device, self.dtype = device, dtype
        self._model = model.eval().to(device)
        draft = Draft(model.config, model.config.num_hidden_layers)
        tensors = load_file(checkpoint / "model.safetensors")
        stored = {name.removeprefix("mtp."): tensor for name, tensor in tensors.items() if name.startswith("mtp.")}
        draft.load_state_dict(stored)
        self._draft = draft.eval().to(device, dtype)

    def shape(self, *, revisited_tokens: int) -> Shape:
        """Of the pools for it, the MTP block's layer last."""
        kinds = [kind == "sliding_attention" for kind in self.config.layer_types]
        config = self.config
        return Shape(
            is_sliding=(*kinds, kinds[0]),
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            window=config.sliding_window,
            dtype=self.dtype,
            device=self.device,
            revisited_tokens=revisited_tokens,
        )

    def hidden(self, tokens: Sequence[int], current: Pass) -> torch.Tensor:
        """[rows, hidden] after the final norm."""
        inner = self._model.model
        found: torch.Tensor = inner.norm(self._through(inner.layers, self._embed(tokens), current))[0]
        return found

    def draft_hidden(self, tokens: Sequence[int], before: torch.Tensor, current: Pass) -> torch.Tensor:
        """The MTP block's own normed output; row p has the token at p + 1 and the hidden state `before` of p."""
        draft = self._draft
        joined = (draft.pre_fc_norm_embedding(self._embed(tokens)), draft.pre_fc_norm_hidden(before[None]))
        found: torch.Tensor = draft.norm(self._through(draft.layers, draft.fc(torch.cat(joined, dim=-1)), current))[0]
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, vocabulary]."""
        found: torch.Tensor = self._model.lm_head(hidden).float()
        return found

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        found: torch.Tensor = self._model.model.embed_tokens(torch.tensor(tokens, device=self.device))
        return found[None]

    def _through(self, layers: Iterable[Any], states: torch.Tensor, current: Pass) -> torch.Tensor:
        rotary = self._model.model.rotary_emb(states, current.positions[None])
        for layer in layers:
            states = layer(states, position_embeddings=rotary, current=current)
        return states


class Reference:
    """transformers alone, float32 on the CPU, each sequence read whole: no cache, no pool, none of our code."""

    def __init__(self, checkpoint: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    def log_probabilities(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [tokens, vocabulary]."""
        found: torch.Tensor = self._model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return torch.log_softmax(found.float(), -1)
