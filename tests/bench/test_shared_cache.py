"""The shared cache's benchmark, once, on a real Redis: it ends with what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(60)
def test_its_last_line_has_least_median_and_most_of_every_step() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "bench" / "shared_cache.py", "--rounds", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["machine"]["cores"] > 0
    for step in ("look_up_ms", "read_mb_per_s", "unseal_mb_per_s", "seal_mb_per_s", "write_mb_per_s"):
        least, median, most = found[step]
        assert 0 < least <= median <= most
