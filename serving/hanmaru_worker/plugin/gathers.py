"""Attention in plain torch over paged KV pools: what each call gathers, and the call. Imports torch alone.

`attention.py` makes the gathers of a forward pass once for all layers with one window in one pool, and attends
with them in each layer; a bench of the pools on another device does the same without the engine. Which query
sees which key is `spans.py`'s. Slots are read from a table of the form of SGLang's `req_to_token`: row by
request, column by position. Translation into another pool's numbering is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from hanmaru_worker.plugin.spans import FULL_BLOCK_QUERIES, even_width, length_buckets, sliding_blocks

FEW_QUERIES = 16
"""Up to so many queries each, sequences are batched over full layers; beyond, prefill's bounded masks are cheaper."""


@dataclass(frozen=True, slots=True)
class Gather:
    """One call of attention: some rows of the batch over some slots of one pool."""

    rows: torch.Tensor | None
    """int64 [groups, queries]: rows of the batch; None for all of them in order."""
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


def sliding_gathers(
    request_slots: torch.Tensor, lengths: Lengths, keys_before: int, dtype: torch.dtype
) -> list[Gather]:
    """One call for a layer whose queries see themselves and `keys_before` keys, in prefill and decode alike."""
    blocks = sliding_blocks(lengths.prefix_lens, lengths.query_lens, keys_before)
    slots = request_slots[lengths.requests[blocks.sequence, None], blocks.positions].to(torch.int64)
    return [Gather(blocks.rows, slots, _bias(blocks.is_visible, dtype), blocks.is_row)]


def full_gathers(request_slots: torch.Tensor, lengths: Lengths, dtype: torch.dtype) -> list[Gather]:
    """Calls for a layer whose queries see all before them: one for each class of lengths, or for each 512 queries."""
    if even_width(lengths.query_lens) <= FEW_QUERIES:
        return list(_full_even_gathers(request_slots, lengths, dtype))
    return list(_full_extend_gathers(request_slots, lengths, dtype))


def _full_even_gathers(request_slots: torch.Tensor, lengths: Lengths, dtype: torch.dtype) -> Iterator[Gather]:
    """Decode, and the check of drafts: as many queries from each sequence, over keys of any length."""
    width = lengths.query_lens[0]
    buckets = length_buckets([prefix + width for prefix in lengths.prefix_lens])
    for members in buckets:
        prefix = torch.tensor([lengths.prefix_lens[member] for member in members])[:, None]
        longest = max(lengths.prefix_lens[member] for member in members) + width
        shortest = min(lengths.prefix_lens[member] for member in members) + width
        positions = torch.arange(longest)
        is_visible = None
        if width > 1 or shortest < longest:
            is_visible = positions <= (prefix + torch.arange(width))[:, :, None]
        rows = None if len(buckets) == 1 else torch.tensor(members)[:, None] * width + torch.arange(width)
        requests = lengths.requests[members] if len(buckets) > 1 else lengths.requests
        slots = request_slots[requests[:, None], torch.minimum(positions, prefix + (width - 1))].to(torch.int64)
        yield Gather(rows, slots, _bias(is_visible, dtype), None)


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


def _bias(is_visible: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if is_visible is None:
        return None
    bias = torch.zeros(is_visible.shape, dtype=dtype)
    return bias.masked_fill_(~is_visible, float("-inf"))[:, None]


def attend(
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
    groups, num_keys = gather.slots.shape
    kv_heads, dim = keys.shape[1], keys.shape[2]
    shared = query.shape[1] // kv_heads
    picked = query if gather.rows is None else query[gather.rows]
    picked = picked.view(groups, -1, kv_heads, shared, dim)
    num_queries = picked.shape[1]
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
    if gather.rows is None:
        out.view(got.shape).copy_(got)
        return
    got = got.reshape(groups, num_queries, kv_heads * shared, -1)
    if gather.is_row is None:
        out[gather.rows.reshape(-1)] = got.flatten(0, 1)
    else:
        out[gather.rows[gather.is_row]] = got[gather.is_row]
