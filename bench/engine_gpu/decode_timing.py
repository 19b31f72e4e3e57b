"""How long a decode step of attention layers of K-EXAONE's real widths takes, with two pools and with one.

`ops.py` calls it. The stack is transformers' own norm and attention (projections, QK-norm, RoPE) with random weights,
and nothing between them: the experts of 48 layers fit no single GPU and are the same either way. Caches hold zeros:
what is in them costs nothing. Both ways read 128 keys in a sliding layer, so what differs in time is the translation of
slots; what differs in memory is how many sequences fit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import ExaoneMoeConfig
from transformers.models.exaone_moe.modeling_exaone_moe import (
    ExaoneMoeAttention,
    ExaoneMoeRMSNorm,
    ExaoneMoeRotaryEmbedding,
)
from two_pools import Pools, Request, Shape, next_pass, sliding_slots_needed

CHUNK_TOKENS = 2048
"""The pools are sized as the planner sizes them, with two prefill chunks of this."""
WAYS = ("hybrid", "full")
WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True)
class Stack:
    """Widths and depth of what is timed."""

    layers: int = 48
    hidden: int = 6144
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 128
    window: int = 128

    def shape(self, dtype: torch.dtype, device: torch.device) -> Shape:
        """Of its pools: `LLLG` all the way."""
        is_sliding = tuple(layer % 4 != 3 for layer in range(self.layers))
        return Shape(is_sliding, self.kv_heads, self.head_dim, self.window, dtype, device)


@dataclass(frozen=True, slots=True)
class Point:
    """One batch that decodes."""

    context: int
    batch: int


class Layers(nn.Module):
    """Norm and attention, `layers` times."""

    def __init__(self, stack: Stack, attention: str) -> None:
        super().__init__()
        kinds = ["full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(stack.layers)]
        config = ExaoneMoeConfig(
            hidden_size=stack.hidden,
            num_hidden_layers=stack.layers,
            num_attention_heads=stack.heads,
            num_key_value_heads=stack.kv_heads,
            head_dim=stack.head_dim,
            sliding_window=stack.window,
            layer_types=kinds,
            max_position_embeddings=262_144,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
        config._attn_implementation = attention  # noqa: SLF001 - how transformers itself passes it on
        self.norms = nn.ModuleList(ExaoneMoeRMSNorm(stack.hidden) for _ in kinds)
        self.attentions = nn.ModuleList(ExaoneMoeAttention(config, layer) for layer in range(stack.layers))
        self.rotary = ExaoneMoeRotaryEmbedding(config)

    def forward(self, states: torch.Tensor, current: Any) -> torch.Tensor:
        """[1, rows, hidden] to the same."""
        rotary = self.rotary(states, current.positions[None])
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            states = states + attention(norm(states), position_embeddings=rotary, current=current)[0]
        return states


def make_layers(stack: Stack, dtype: torch.dtype, device: torch.device, attention: str) -> Layers:
    """Made where they stay: float32 copies of 11 GB in bfloat16 would need the room twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Layers(stack, attention).eval()
    finally:
        torch.set_default_dtype(before)


def slots(shape: Shape, point: Point, way: str, extra: int = 0) -> tuple[int, int | None]:
    """Slots of the full and the sliding pool for a batch that grows by `extra` tokens each."""
    full = point.batch * (point.context + extra)
    chunk = min(CHUNK_TOKENS, point.context)
    sliding = sliding_slots_needed(shape.window, point.batch, verified_tokens=1, chunk_tokens=chunk)
    return full, min(sliding, full) if way == "hybrid" else None


def pool_bytes(shape: Shape, point: Point, way: str) -> int:
    """Of the pools as `slots` sizes them."""
    full, sliding = slots(shape, point, way)
    return shape.pool_bytes(full, sliding)


def batch_in(shape: Shape, context: int, budget_bytes: int) -> int:
    """Most sequences of `context` tokens whose two pools take no more than `budget_bytes`."""
    batch = 0
    while pool_bytes(shape, Point(context, batch + 1), "hybrid") <= budget_bytes:
        batch += 1
    return batch


@torch.inference_mode()
def step_ms(layers: Layers, shape: Shape, point: Point, way: str, steps: int, hidden: int) -> list[float]:
    """Milliseconds of each of `steps` decode steps: slots given and taken back, indices made, all layers run."""
    total = WARM_UP_STEPS + steps
    full, sliding = slots(shape, point, way, extra=total)
    context = point.context + total
    pools = Pools(shape, full_slots=full, sliding_slots=sliding, requests=point.batch, context=context, poison=False)
    requests = [Request(row) for row in range(point.batch)]
    _fill(pools, requests, point.context)
    states = torch.randn((1, point.batch, hidden), dtype=shape.dtype, device=shape.device)
    took = []
    for _ in range(total):
        _wait(shape.device)
        begun = time.perf_counter()
        layers(states, next_pass(pools, requests, [1] * point.batch))
        _wait(shape.device)
        took.append((time.perf_counter() - begun) * 1e3)
    return took[WARM_UP_STEPS:]


def _fill(pools: Pools, requests: Sequence[Request], tokens: int) -> None:
    """Give each its slots as a prefill in chunks does, so that the sliding pool needs no more than it has."""
    for request in requests:
        for start in range(0, tokens, CHUNK_TOKENS):
            pools.give([request], [min(CHUNK_TOKENS, tokens - start)])
        pools.slide(request)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
