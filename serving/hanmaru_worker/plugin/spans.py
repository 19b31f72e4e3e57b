"""Which keys each query may see, as index arithmetic: no pools, no layers, no forward passes.

`attention.py` calls it once per forward and window. A *sliding* layer's work is cut into blocks of
consecutive queries of one sequence, all blocks of all sequences forming one batch, so that prefill and
decode are the same computation and cost O(queries x window). A *full* layer's prefill is cut by sequence,
its decode into buckets of similar length. Positions are absolute in their sequence, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SLIDING_BLOCK_QUERIES = 64
"""Queries a block of a sliding layer's prefill: with 127 keys before them, two thirds of the scores are used."""

FULL_BLOCK_QUERIES = 512
"""Queries a step of a full layer's prefill: bounds the mask at 512 x keys whatever the prompt's length."""


@dataclass(frozen=True, slots=True)
class QueryBlocks:
    """Blocks of queries over gathered keys; `blocks` x `queries` and `blocks` x `keys`."""

    rows: torch.Tensor | None
    """int64 [blocks, queries]: the row of each query in the batch; rows past a sequence's end repeat its last.

    None when the blocks hold the batch's rows in order.
    """
    is_row: torch.Tensor | None
    """bool [blocks, queries]: which of `rows` are real; None when all are."""
    sequence: torch.Tensor
    """int64 [blocks]: the sequence of each block, as an index into the batch."""
    positions: torch.Tensor
    """int64 [blocks, keys]: key positions, clamped into the sequence's live keys so that a gather is always safe."""
    is_visible: torch.Tensor | None
    """bool [blocks, queries, keys]: whether a query sees a key. Each sees at least itself; None when each sees all."""


def sliding_blocks(prefix_lens: Sequence[int], query_lens: Sequence[int], keys_before: int) -> QueryBlocks:
    """Blocks for a layer whose query at position p sees positions p - keys_before .. p.

    Sequence i brings `query_lens[i]` >= 0 queries at positions `prefix_lens[i]`, `prefix_lens[i]` + 1, …; their
    rows follow one another in the batch. Decode is the case of one query each, a check of drafts that of a few.
    """
    if even_width(query_lens) <= SLIDING_BLOCK_QUERIES:
        return _even_blocks(prefix_lens, query_lens[0], keys_before)
    size = min(SLIDING_BLOCK_QUERIES, max(query_lens, default=0))
    prefix = torch.tensor(prefix_lens, dtype=torch.int64)
    lens = torch.tensor(query_lens, dtype=torch.int64)
    first_rows = torch.cumsum(lens, 0) - lens
    blocks_of = (lens + size - 1) // max(size, 1)
    sequence = torch.repeat_interleave(torch.arange(len(lens)), blocks_of)
    nth = torch.arange(len(sequence)) - (torch.cumsum(blocks_of, 0) - blocks_of)[sequence]

    offsets = nth[:, None] * size + torch.arange(size)
    last_offsets = (lens[sequence] - 1)[:, None]
    is_row = offsets <= last_offsets
    offsets = torch.minimum(offsets, last_offsets)
    queries = prefix[sequence, None] + offsets

    wanted = queries[:, :1] - keys_before + torch.arange(keys_before + size)
    low = (queries[:, :1] - keys_before).clamp(min=0)
    positions = torch.minimum(torch.maximum(wanted, low), queries[:, -1:])
    is_key = wanted == positions
    is_visible = (
        is_key[:, None, :]
        & (wanted[:, None, :] <= queries[:, :, None])
        & (wanted[:, None, :] >= queries[:, :, None] - keys_before)
    )
    return QueryBlocks(
        rows=first_rows[sequence, None] + offsets,
        is_row=None if bool(is_row.all()) else is_row,
        sequence=sequence,
        positions=positions,
        is_visible=is_visible,
    )


def even_width(query_lens: Sequence[int]) -> float:
    """How many queries every sequence brings; infinity where they differ, or where there is none."""
    width = query_lens[0] if query_lens else 0
    return width if width and all(length == width for length in query_lens) else float("inf")


def _even_blocks(prefix_lens: Sequence[int], width: int, keys_before: int) -> QueryBlocks:
    """One block a sequence: the case that every decode step meets, in a third of the operations."""
    prefix = torch.tensor(prefix_lens, dtype=torch.int64)
    wanted = prefix[:, None] + torch.arange(-keys_before, width)
    is_visible = None
    if width > 1 or min(prefix_lens) < keys_before:
        ahead = torch.arange(keys_before + width) - torch.arange(width)[:, None]
        is_visible = (wanted >= 0)[:, None, :] & ((ahead >= 0) & (ahead <= keys_before))
    return QueryBlocks(
        rows=None,
        is_row=None,
        sequence=torch.arange(len(prefix_lens)),
        positions=wanted.clamp_(min=0) if is_visible is not None else wanted,
        is_visible=is_visible,
    )


def length_buckets(lens: Sequence[int]) -> list[list[int]]:
    """Sequences grouped so that padding each group to its longest at most doubles the keys read.

    A decode batch is gathered group by group: one long sequence among short ones must not make all of them
    long, and one call a sequence would make the batch a loop. At most log2(longest) groups.
    """
    buckets: dict[int, list[int]] = {}
    for index, length in enumerate(lens):
        buckets.setdefault((length - 1).bit_length(), []).append(index)
    return list(buckets.values())
