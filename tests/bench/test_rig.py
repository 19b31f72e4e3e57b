"""Ratios are taken within a round, so a machine that slows down for everybody changes none of them."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gateway"))

import rig
from load import Result

CELL = rig.Cell(64, is_streaming=False)


def sample(rps: float, p50_ms: float = 1.0) -> rig.Sample:
    return rig.Sample(Result(100, 0, 1.0, rps, p50_ms, p50_ms, p50_ms), 0.1)


@given(moods=st.lists(st.floats(0.01, 100), min_size=1, max_size=7))
def test_a_ratio_survives_any_change_of_the_machines_mood(moods: list[float]) -> None:
    samples = {
        ("ours", CELL): [sample(3000 * mood) for mood in moods],
        ("peer", CELL): [sample(100 * mood) for mood in moods],
    }
    assert abs(rig.median_ratio(samples, "rps", "ours", "peer", CELL) - 30) < 1e-6


def test_one_bad_round_of_five_moves_no_median() -> None:
    samples = {
        ("ours", CELL): [sample(3000, p50_ms=p50) for p50 in (1.5, 1.5, 90.0, 1.5, 1.5)],
        ("direct", CELL): [sample(9000, p50_ms=1.0) for _ in range(5)],
    }
    assert rig.median_added(samples, "p50_ms", "ours", "direct", CELL) == 0.5
