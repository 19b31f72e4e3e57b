"""The index arithmetic against the definition of a window, by brute force."""

from __future__ import annotations

import torch
from hanmaru_worker.plugin.spans import length_buckets, sliding_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

Mixed = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), min_size=1, max_size=5)
Even = st.tuples(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(1, 70)).map(
    lambda drawn: [(prefix, drawn[1]) for prefix in drawn[0]]
)
Sequences = st.one_of(Mixed, Even)
"""Prefix and queries of each: any, or as in a decode step or a check of drafts, equally many queries of each."""


@settings(max_examples=60, deadline=None)
@given(sequences=Sequences, keys_before=st.integers(0, 140))
def test_each_query_sees_its_window_and_nothing_else(sequences: list[tuple[int, int]], keys_before: int) -> None:
    prefix_lens = [prefix for prefix, _ in sequences]
    query_lens = [queries for _, queries in sequences]
    blocks = sliding_blocks(prefix_lens, query_lens, keys_before)

    rows = blocks.rows if blocks.rows is not None else torch.arange(sum(query_lens)).view(len(blocks.sequence), -1)
    seen: dict[int, tuple[int, list[int]]] = {}
    for block in range(len(blocks.sequence)):
        for query in range(rows.shape[1]):
            if blocks.is_row is not None and not blocks.is_row[block, query]:
                continue
            row = int(rows[block, query])
            assert row not in seen, "a query was computed twice"
            keys = blocks.positions[block]
            keys = (keys if blocks.is_visible is None else keys[blocks.is_visible[block, query]]).tolist()
            seen[row] = (int(blocks.sequence[block]), sorted(keys))

    expected: dict[int, tuple[int, list[int]]] = {}
    for sequence, (prefix, queries) in enumerate(sequences):
        for position in range(prefix, prefix + queries):
            expected[len(expected)] = (sequence, list(range(max(0, position - keys_before), position + 1)))
    assert seen == expected


@settings(max_examples=60, deadline=None)
@given(sequences=Sequences, keys_before=st.integers(0, 140))
def test_no_gather_leaves_the_window_of_the_sequence(sequences: list[tuple[int, int]], keys_before: int) -> None:
    """Older keys may have been given to another sequence: even an invisible read of one could be a NaN."""
    prefix_lens = [prefix for prefix, _ in sequences]
    query_lens = [queries for _, queries in sequences]
    blocks = sliding_blocks(prefix_lens, query_lens, keys_before)
    prefix = torch.tensor(prefix_lens)[blocks.sequence, None]
    total = prefix + torch.tensor(query_lens)[blocks.sequence, None]
    assert bool((blocks.positions >= (prefix - keys_before).clamp(min=0)).all())
    assert bool((blocks.positions < total).all())


def test_decode_is_one_block_a_sequence_of_the_windows_width() -> None:
    blocks = sliding_blocks([0, 126, 127, 5000], [1, 1, 1, 1], 127)
    assert blocks.rows is None
    assert blocks.is_row is None
    assert blocks.positions.shape == (4, 128)
    assert blocks.is_visible is not None
    assert blocks.is_visible.sum(-1).flatten().tolist() == [1, 127, 128, 128]
    assert sliding_blocks([127, 5000], [1, 1], 127).is_visible is None, "past the first window nothing is masked"


@given(lens=st.lists(st.integers(1, 100_000), min_size=1, max_size=64))
def test_buckets_hold_each_sequence_once_and_at_most_double_it(lens: list[int]) -> None:
    buckets = length_buckets(lens)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lens)))
    for bucket in buckets:
        longest = max(lens[index] for index in bucket)
        assert all(longest <= 2 * lens[index] for index in bucket)
    assert len(buckets) <= max(lens).bit_length() + 1
