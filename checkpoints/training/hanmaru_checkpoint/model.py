"""The model in plain torch, float32: the form that is trained and that tokens-per-step is measured with.

The same mathematics as transformers' `exaone_moe` (`tests/checkpoint` compares the logits) and the MTP block as SGLang
runs it: one dense layer run as layer 0, so sliding and with RoPE, on
`fc(cat(norm(embedding), norm(final-normed hidden)))`. Experts are stacked tensors here; `weights.py` gives them the
names of the checkpoint. It knows nothing of losses or text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own customary name

from hanmaru_checkpoint.shape import Shape


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer, `[batch, kv_heads, tokens, head_dim]`; grows by `extend`, shrinks by `cut`."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def cut(self, num_tokens: int) -> None:
        """Forgets everything after the first `num_tokens`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens]

    @property
    def num_tokens(self) -> int:
        """How many tokens it holds."""
        return 0 if self.keys is None else self.keys.shape[2]


@dataclass(slots=True)
class Cache:
    """One `LayerCache` a layer."""

    layers: list[LayerCache] = field(default_factory=list)

    @classmethod
    def of(cls, num_layers: int) -> Cache:
        """An empty one."""
        return cls([LayerCache() for _ in range(num_layers)])

    def cut(self, num_tokens: int) -> None:
        """Forgets everything after the first `num_tokens`, in every layer."""
        for layer in self.layers:
            layer.cut(num_tokens)

    @property
    def num_tokens(self) -> int:
        """How many tokens it holds."""
        return self.layers[0].num_tokens


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normed over the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU; gate and up are one matrix, gate first."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(_matrix(2 * inner, hidden))
        self.down = nn.Parameter(_matrix(hidden, inner))

    def forward(self, x: Tensor) -> Tensor:
        """Any leading dimensions."""
        return swiglu(x @ self.gate_up.t()) @ self.down.t()


def swiglu(gate_up: Tensor) -> Tensor:
    """Gated activation; the gate is the first half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _Dispatch(torch.autograd.Function):
    """Rows of `x` copied to their places in expert order; `slots[n, k]` is the place of token n's k-th copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return x.index_select(0, order // slots.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Gathering is several times faster on a CPU than the scatter-add that autograd would use.
        (slots,) = ctx.saved_tensors
        copies = grads[0].index_select(0, slots.reshape(-1))
        return copies.view(*slots.shape, -1).sum(dim=1), None, None


class _Collect(torch.autograd.Function):
    """The way back: `[tokens, top_k, hidden]` from rows in expert order."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return y.index_select(0, slots.reshape(-1)).view(*slots.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grads[0].reshape(order.shape[0], -1).index_select(0, order), None, None


class SparseFeedForward(nn.Module):
    """Sigmoid-routed experts and a shared one; the correction bias chooses experts but does not weigh them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, inner, experts = shape.hidden_size, shape.expert_size, shape.num_experts
        self.top_k, self.scaling = shape.experts_per_token, shape.routed_scaling
        self.gate = nn.Parameter(_matrix(experts, hidden))
        self.gate_up = nn.Parameter(torch.stack([_matrix(2 * inner, hidden) for _ in range(experts)]))
        self.down = nn.Parameter(torch.stack([_matrix(hidden, inner) for _ in range(experts)]))
        self.shared = FeedForward(hidden, inner * shape.num_shared_experts)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(experts))
        self.load = torch.zeros(experts)
        """Tokens each expert got in the last forward; the trainer moves `bias` against it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any leading dimensions; records `load`."""
        rows = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(rows @ self.gate.t())
        chosen = (scores.detach() + self.bias).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * self.scaling

        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(order.shape[0])
        slots = slots.view_as(chosen)
        counts = torch.bincount(flat, minlength=self.gate.shape[0])
        self.load = counts

        parts = _Dispatch.apply(rows, order, slots).split(counts.tolist())
        outputs = [
            swiglu(part @ self.gate_up[e].t()) @ self.down[e].t() for e, part in enumerate(parts) if part.shape[0]
        ]
        copies = _Collect.apply(torch.cat(outputs), order, slots)
        routed = torch.bmm(weights.unsqueeze(1), copies).squeeze(1)
        shared: Tensor = self.shared(rows)
        return (routed + shared).view_as(x)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm; RoPE on sliding layers only."""

    def __init__(self, shape: Shape, *, sliding: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.window = shape.sliding_window if sliding else None
        self.rope_theta = shape.rope_theta
        self.qkv = nn.Parameter(_matrix((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, shape.hidden_size))
        self.out = nn.Parameter(_matrix(shape.hidden_size, shape.num_heads * shape.head_dim))
        self.q_norm = Norm(shape.head_dim, shape.rms_eps)
        self.k_norm = Norm(shape.head_dim, shape.rms_eps)

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[batch, heads, tokens, head_dim]`, normed and rotated."""
        batch, tokens, _ = x.shape
        heads = (x @ self.qkv.t()).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q, k, v = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.window is not None:
            cos, sin = _rotation(positions, self.head_dim, self.rope_theta)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        return q, k, v

    def forward(self, x: Tensor, positions: Tensor, cache: LayerCache | None) -> Tensor:
        """`x` `[batch, tokens, hidden]` at `positions`, after what `cache` holds."""
        q, k, v = self.project(x, positions)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.merge(self._attend(q, k, v, positions))

    def merge(self, heads: Tensor) -> Tensor:
        """The layer's output out of what each head attended to."""
        batch, _, tokens, _ = heads.shape
        return heads.transpose(1, 2).reshape(batch, tokens, -1) @ self.out.t()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        group = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        tokens = q.shape[2]
        if k.shape[2] == tokens:
            if self.window is None:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            if tokens % self.window == 0 and tokens > self.window:
                return _attend_in_blocks(q, k, v, self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen(positions, k.shape[2], self.window))


def seen(positions: Tensor, num_keys: int, window: int | None) -> Tensor:
    """`[queries, keys]` mask: key j at position j is seen from position p when p - window < j <= p."""
    distance = positions[:, None] - torch.arange(num_keys)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Sliding attention where each block of `window` queries looks at its own block and the one before it."""
    batch, heads, tokens, dim = q.shape
    blocks = tokens // window

    def with_previous(x: Tensor) -> Tensor:
        x = x.reshape(batch, heads, blocks, window, dim)
        return torch.cat((F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x), dim=3)

    own = torch.arange(window)[:, None]
    key = torch.arange(2 * window)[None, :] - window
    mask = (key <= own) & (key > own - window)
    first = mask & (key >= 0)
    masks = torch.stack([first, *[mask] * (blocks - 1)])

    def fold(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(batch * blocks, heads, -1, dim)

    queries = fold(q.reshape(batch, heads, blocks, window, dim))
    masks = masks.repeat(batch, 1, 1)[:, None]
    out = F.scaled_dot_product_attention(queries, fold(with_previous(k)), fold(with_previous(v)), attn_mask=masks)
    return out.view(batch, blocks, heads, window, dim).transpose(1, 2).reshape(batch, heads, tokens, dim)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape, *, sliding: bool, sparse: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.hidden_size, shape.rms_eps)
        self.attention = Attention(shape, sliding=sliding)
        self.ffn_norm = Norm(shape.hidden_size, shape.rms_eps)
        self.ffn = SparseFeedForward(shape) if sparse else FeedForward(shape.hidden_size, shape.dense_size)

    def forward(self, x: Tensor, positions: Tensor, cache: LayerCache | None = None) -> Tensor:
        """`x` `[batch, tokens, hidden]` at `positions`, after what `cache` holds."""
        attended: Tensor = self.attention(self.attention_norm(x), positions, cache)
        x = x + attended
        fed: Tensor = self.ffn(self.ffn_norm(x))
        return x + fed


class MtpBlock(nn.Module):
    """Predicts token p+2 in row p, from token p+1 and the hidden state of position p."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding_norm = Norm(shape.hidden_size, shape.rms_eps)
        self.hidden_norm = Norm(shape.hidden_size, shape.rms_eps)
        self.fc = nn.Parameter(_matrix(shape.hidden_size, 2 * shape.hidden_size))
        self.layer = Layer(shape, sliding=True, sparse=False)
        self.norm = Norm(shape.hidden_size, shape.rms_eps)

    def enter(self, next_embeddings: Tensor, hidden: Tensor) -> Tensor:
        """What the layer runs on."""
        return torch.cat((self.embedding_norm(next_embeddings), self.hidden_norm(hidden)), dim=-1) @ self.fc.t()

    def forward(self, next_embeddings: Tensor, hidden: Tensor, positions: Tensor, cache: LayerCache | None) -> Tensor:
        """Final-normed hidden states; `hidden` is the main model's own, or this block's of the step before."""
        out: Tensor = self.norm(self.layer(self.enter(next_embeddings, hidden), positions, cache))
        return out


class Model(nn.Module):
    """Main model and MTP block, which share embedding and head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.5)
        self.layers = nn.ModuleList(
            Layer(shape, sliding=shape.is_sliding(i), sparse=shape.is_sparse(i)) for i in range(shape.num_layers)
        )
        self.norm = Norm(shape.hidden_size, shape.rms_eps)
        self.head = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.02)
        self.mtp = MtpBlock(shape)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings, unscaled."""
        return F.embedding(ids, self.embedding)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Final-normed hidden states of `ids` `[batch, tokens]`, which follow what `cache` holds."""
        start = cache.num_tokens if cache else 0
        positions = torch.arange(start, start + ids.shape[1])
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, positions, cache.layers[i] if cache else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, from final-normed states of the model or of the MTP block."""
        return hidden @ self.head.t()

    def sparse_blocks(self) -> Iterator[SparseFeedForward]:
        """The layers with experts."""
        for module in self.modules():
            if isinstance(module, SparseFeedForward):
                yield module


def _matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) * math.pow(columns, -0.5)


def _rotation(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = positions[:, None].float() * inverse[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
