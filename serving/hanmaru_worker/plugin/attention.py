"""Attention in plain torch over SGLang's paged KV pools: the CPU platform's backend.

SGLang constructs it once per model runner and calls `init_forward_metadata` before, and `forward_*` in, each
forward pass. It exists because upstream's plain-torch backend writes sliding layers at locations translated to
the sliding pool and reads them at untranslated ones. Here both sides go through one translation, and a sliding
layer touches the keys of its window only: older ones may already belong to another sequence. Which query sees
which key is `spans.py`'s. Encoders, cross attention, logit caps and attention sinks are refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from torch.nn.functional import scaled_dot_product_attention

from hanmaru_worker.plugin.spans import FULL_BLOCK_QUERIES, length_buckets, sliding_blocks

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


@dataclass(frozen=True, slots=True)
class Gather:
    """One call of attention: some rows of the batch over some slots of one pool."""

    rows: torch.Tensor
    """int64 [groups, queries]: rows of the batch."""
    slots: torch.Tensor
    """int64 [groups, keys]: KV slots, already in the pool's own numbering."""
    bias: torch.Tensor | None
    """float [groups, 1, queries, keys]: 0 where a query sees a key and -inf where not; None when it sees all."""
    is_row: torch.Tensor | None
    """bool [groups, queries]: which rows are real; None when all are."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What every layer of one forward pass shares about the batch's sequences."""

    prefix_lens: list[int]
    """Tokens each sequence had in the pools before this pass."""
    query_lens: list[int]
    """Tokens each sequence brings; 1 each while decoding."""
    requests: torch.Tensor
    """int64 [sequences]: rows of the engine's request-to-slot table."""


class NativeAttentionBackend(AttentionBackend):  # type: ignore[misc]  # SGLang ships no types
    """One instance serves prefill, chunked prefill over a prefix, mixed batches and decode."""

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        self._request_slots: torch.Tensor = model_runner.req_to_token_pool.req_to_token
        self._pool: Any = model_runner.token_to_kv_pool
        self._lengths: Lengths | None = None
        self._write: KVWriteLoc | None = None
        self._gathers: dict[tuple[int, bool], list[Gather]] = {}

    def support_triton(self) -> bool:
        """Answered for the engine, which otherwise would use Triton kernels around this backend."""
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Note the pass's lengths and where its tokens are written; gathers follow at the first layer that asks."""
        self._lengths = _lengths(forward_batch)
        self._gathers = {}
        slots = forward_batch.out_cache_loc
        if slots is None:
            self._write = None
        elif isinstance(self._pool, SWAKVPool):
            self._write = KVWriteLoc(slots, self._pool.translate_loc_from_full_to_swa(slots))
        else:
            self._write = KVWriteLoc(slots, None)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Rows [tokens, heads x dim] for prompts or parts of prompts, over what is cached of them."""
        return self._forward(q, k, v, layer, save_kv_cache, extras)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Rows [sequences, heads x dim], one new token each."""
        return self._forward(q, k, v, layer, save_kv_cache, extras)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        save_kv_cache: bool,
        extras: dict[str, Any],
    ) -> torch.Tensor:
        _refuse_unsupported(layer, extras)
        if save_kv_cache and k is not None and v is not None:
            self._pool.set_kv_buffer(layer, self._write, k, v)
        keys = self._pool.get_key_buffer(layer.layer_id)
        values = self._pool.get_value_buffer(layer.layer_id)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = query.new_empty((query.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        for gather in self._layer_gathers(layer, query.dtype):
            _attend(query, keys, values, gather, layer.scaling, out)
        return out.view(out.shape[0], -1)

    def _layer_gathers(self, layer: RadixAttention, dtype: torch.dtype) -> list[Gather]:
        """The layer's gathers; all layers with one window in one pool share them within a pass."""
        keys_before = int(layer.sliding_window_size)
        is_translated = isinstance(self._pool, SWAKVPool) and self._pool.layers_mapping[layer.layer_id][1]
        key = (keys_before, is_translated)
        found = self._gathers.get(key)
        if found is None:
            assert self._lengths is not None, "forward before init_forward_metadata"
            if keys_before >= 0:
                plain = _sliding_gathers(self._request_slots, self._lengths, keys_before, dtype)
            else:
                plain = _full_gathers(self._request_slots, self._lengths, dtype)
            found = [self._translated(gather) if is_translated else gather for gather in plain]
            self._gathers[key] = found
        return found

    def _translated(self, gather: Gather) -> Gather:
        slots = self._pool.translate_loc_from_full_to_swa(gather.slots)
        return Gather(gather.rows, slots.to(torch.int64), gather.bias, gather.is_row)


def _refuse_unsupported(layer: RadixAttention, extras: dict[str, Any]) -> None:
    if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has decoder self-attention only")
    if layer.logit_cap:
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has no logit cap (got {layer.logit_cap})")
    if any(value is not None for value in extras.values()):
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has no {', '.join(sorted(extras))}")


def _lengths(batch: ForwardBatch) -> Lengths:
    requests = batch.req_pool_indices.to(torch.int64)
    if batch.forward_mode.is_decode_or_idle():
        lens = batch.seq_lens.tolist()
        return Lengths([length - 1 for length in lens], [1] * len(lens), requests)
    return Lengths(batch.extend_prefix_lens.tolist(), batch.extend_seq_lens.tolist(), requests)


def _sliding_gathers(
    request_slots: torch.Tensor, lengths: Lengths, keys_before: int, dtype: torch.dtype
) -> list[Gather]:
    blocks = sliding_blocks(lengths.prefix_lens, lengths.query_lens, keys_before)
    slots = request_slots[lengths.requests[blocks.sequence, None], blocks.positions].to(torch.int64)
    return [Gather(blocks.rows, slots, _bias(blocks.is_visible, dtype), blocks.is_row)]


def _full_gathers(request_slots: torch.Tensor, lengths: Lengths, dtype: torch.dtype) -> list[Gather]:
    if all(length == 1 for length in lengths.query_lens):
        return list(_full_decode_gathers(request_slots, lengths, dtype))
    return list(_full_extend_gathers(request_slots, lengths, dtype))


def _full_decode_gathers(request_slots: torch.Tensor, lengths: Lengths, dtype: torch.dtype) -> Iterator[Gather]:
    lens = [prefix + 1 for prefix in lengths.prefix_lens]
    for members in length_buckets(lens):
        rows = torch.tensor(members)
        bucket_lens = torch.tensor([lens[member] for member in members])
        longest = int(bucket_lens.max())
        positions = torch.arange(longest)
        is_key = positions < bucket_lens[:, None]
        positions = torch.minimum(positions.expand(len(members), -1), bucket_lens[:, None] - 1)
        slots = request_slots[lengths.requests[rows, None], positions].to(torch.int64)
        bias = None if bool(is_key.all()) else _bias(is_key[:, None, :], dtype)
        yield Gather(rows[:, None], slots, bias, None)


def _full_extend_gathers(request_slots: torch.Tensor, lengths: Lengths, dtype: torch.dtype) -> Iterator[Gather]:
    first_row = 0
    for index, (prefix_len, query_len) in enumerate(zip(lengths.prefix_lens, lengths.query_lens, strict=True)):
        request = lengths.requests[index]
        for start in range(0, query_len, FULL_BLOCK_QUERIES):
            end = min(start + FULL_BLOCK_QUERIES, query_len)
            queries = torch.arange(prefix_len + start, prefix_len + end)
            is_visible = torch.arange(prefix_len + end) <= queries[:, None]
            yield Gather(
                rows=torch.arange(first_row + start, first_row + end)[None],
                slots=request_slots[request, : prefix_len + end].to(torch.int64)[None],
                bias=_bias(is_visible[None], dtype),
                is_row=None,
            )
        first_row += query_len


def _bias(is_visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(is_visible.shape, dtype=dtype)
    return bias.masked_fill_(~is_visible, float("-inf"))[:, None]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    gather: Gather,
    scaling: float,
    out: torch.Tensor,
) -> None:
    """Fill `out` [rows, heads, dim] at the gather's rows.

    The query heads that share a KV head are laid out as further queries of it, so that grouped-query attention
    needs no copy of the keys per query head.
    """
    groups, num_queries = gather.rows.shape
    num_keys = gather.slots.shape[1]
    kv_heads, dim = keys.shape[1], keys.shape[2]
    shared = query.shape[1] // kv_heads
    picked = query[gather.rows].view(groups, num_queries, kv_heads, shared, dim)
    picked = picked.permute(0, 2, 3, 1, 4).reshape(groups, kv_heads, shared * num_queries, dim)
    slots = gather.slots.reshape(-1)
    key = keys.index_select(0, slots).view(groups, num_keys, kv_heads, dim).transpose(1, 2)
    value = values.index_select(0, slots).view(groups, num_keys, kv_heads, -1).transpose(1, 2)
    bias = gather.bias
    if bias is not None and num_queries > 1 and shared > 1:
        bias = bias.repeat(1, 1, shared, 1)
    got = scaled_dot_product_attention(
        picked, key.to(query.dtype), value.to(query.dtype), attn_mask=bias, scale=scaling
    )
    got = got.view(groups, kv_heads, shared, num_queries, -1).permute(0, 3, 1, 2, 4)
    got = got.reshape(groups, num_queries, kv_heads * shared, -1)
    if gather.is_row is None:
        out[gather.rows.reshape(-1)] = got.flatten(0, 1)
    else:
        out[gather.rows[gather.is_row]] = got[gather.is_row]
