"""The checkpoint that tests with a real engine serve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The committed tiny K-EXAONE, or the one named in HANMARU_TEST_CHECKPOINT (a deeper one, say)."""
    committed = Path(__file__).parents[2] / "checkpoints" / "tiny-k-exaone"
    return Path(os.environ.get("HANMARU_TEST_CHECKPOINT") or committed)
