"""The engine benchmark's own arithmetic: bars, ratios within a round, counts of tokens, and what is compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "checkpoints" / "training"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "engine"))

import bars
import decoding
import kv_bytes
import prefix_hits

MET = {
    "kv_bytes_ratio": 0.286, "kv_allocated_ratio": 0.27, "concurrent_8k_ratio": 4.0,
    "mtp_speedup_b1": 1.6, "mtp_speedup_b8": 1.3, "batch16_speedup": 5.0, "batch16_tokens_per_s": 700.0,
    "before_speedup_b1": 1.1, "prefix_hits": 40, "prefix_evicted_tokens": 30_000, "prefix_error": 1e-6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"kv_bytes_ratio": 0.301}, ["kv_bytes_ratio"]),
        ({"kv_allocated_ratio": 0.31, "concurrent_8k_ratio": 2.9}, ["kv_allocated_ratio", "concurrent_8k_ratio"]),
        ({"mtp_speedup_b1": 1.49, "mtp_speedup_b8": 1.19}, ["mtp_speedup_b1", "mtp_speedup_b8"]),
        ({"batch16_speedup": 6.1, "batch16_tokens_per_s": 400.0}, []),
        ({"batch16_speedup": 5.9, "batch16_tokens_per_s": 599.0}, ["batch16_speedup"]),
        ({"prefix_error": 2e-4}, ["prefix_error"]),
        ({"prefix_hits": 0, "prefix_evicted_tokens": 0}, ["prefix_hits", "prefix_evicted_tokens"]),
        ({"before_speedup_b1": 0.9}, ["before_speedup_b1"]),
    ],
)
def test_a_missed_bar_is_named_with_its_number(changed: dict[str, float], named: list[str]) -> None:
    lines = bars.missed({**MET, **changed})
    assert [line.split()[0] for line in lines] == named
    assert all(str(changed[name]) in line for name, line in zip(named, lines, strict=True))


def test_a_part_that_did_not_run_misses_nothing() -> None:
    assert bars.missed({}) == []


@given(moods=st.lists(st.floats(0.01, 100), min_size=1, max_size=7))
def test_a_speed_up_survives_any_change_of_the_machines_mood(moods: list[float]) -> None:
    shots = {
        (decoding.MTP, 1): [decoding.Shot(160 * mood, 3.5) for mood in moods],
        (decoding.PLAIN, 1): [decoding.Shot(100 * mood, 1.0) for mood in moods],
    }
    assert decoding.Samples(shots).ratio((decoding.MTP, 1), (decoding.PLAIN, 1)) == pytest.approx(1.6)


def test_every_cell_is_first_in_some_round() -> None:
    cells = [(decoding.PLAIN, 1), (decoding.PLAIN, 8), (decoding.MTP, 1)]
    rounds = [decoding.rotated(cells, number) for number in range(len(cells))]
    assert {round_[0] for round_ in rounds} == set(cells)
    assert all(sorted(round_) == sorted(cells) for round_ in rounds)


def test_bytes_count_each_pool_with_its_own_layers() -> None:
    assert (kv_bytes.FULL_LAYERS, kv_bytes.SLIDING_LAYERS) == (12, 36)
    hybrid = kv_bytes.Allocated(1000, 50, bytes=2.0 * (1000 * 12 + 50 * 36))
    assert hybrid.held(kv_bytes.Sample(1, full_slots=100, sliding_slots=10)) == 2.0 * (100 * 12 + 10 * 36)
    full = kv_bytes.Allocated(1000, 0, bytes=3.0 * 1000 * 48)
    assert full.held(kv_bytes.Sample(1, full_slots=100, sliding_slots=0)) == 3.0 * 100 * 48


def test_a_layer_without_a_pool_of_its_own_counts_as_full() -> None:
    """Else an engine whose hybrid memory is off would hold a quarter of what it holds."""
    off = kv_bytes.Allocated(1000, 0, bytes=1e6)
    assert off.held(kv_bytes.Sample(16, full_slots=800, sliding_slots=0)) == pytest.approx(0.8e6)


def test_the_most_held_is_looked_for_while_all_decode() -> None:
    samples = [kv_bytes.Sample(15, 900, 999), kv_bytes.Sample(16, 800, 50), kv_bytes.Sample(16, 810, 40)]
    assert kv_bytes.most_held(samples, 16) == samples[1]
    with pytest.raises(RuntimeError, match="at most 16 did"):
        kv_bytes.most_held(samples, 17)


def test_the_planned_ratios_are_within_the_bars() -> None:
    held = kv_bytes.planned_ratio(kv_bytes.SEQUENCE_TOKENS, 16 * kv_bytes.demand().request_tokens)
    allocated = kv_bytes.planned_ratio(kv_bytes.LONG_SEQUENCE_TOKENS, kv_bytes.demand().tokens(16))
    assert 0.25 < held < bars.AT_MOST["kv_bytes_ratio"]
    assert 0.25 < allocated < bars.AT_MOST["kv_allocated_ratio"]


def answer(cached: int, *pairs: tuple[float, int]) -> dict[str, Any]:
    return {"meta_info": {"cached_tokens": cached, "output_token_logprobs": [[*pair, None] for pair in pairs]}}


def test_sources_of_another_commit_are_found_before_the_installed_ones(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    found = decoding.unpack("HEAD", root, tmp_path)
    assert found is not None
    program = "import hanmaru_contracts, hanmaru_worker; print(hanmaru_contracts.__file__, hanmaru_worker.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | decoding.python_path(found),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert all(path.startswith(str(tmp_path)) for path in told.stdout.split())
    assert decoding.unpack("0" * 40, root, tmp_path) is None


def test_answers_are_compared_as_far_as_they_go_the_same_way_and_where_they_part() -> None:
    plain = [answer(0, (-1.0, 5), (-2.0, 6))] * 3
    cached = [answer(500, (-1.25, 5), (-2.0, 6)), answer(500, (-1.0, 5), (-2.5, 7)), answer(100, (-8.0, 9), (-8.0, 9))]
    found = prefix_hits.compare(cached, plain, evicted_tokens=7)
    assert found == prefix_hits.Found(hits=2, evicted_tokens=7, error=0.5, other_texts=1)
