"""Warnings are errors in tests, but one that must not be: made an error, it kills the process when that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


LOADS = """
import atexit, warnings

def test_loads():
    import sentencepiece
    # What a thread that was in `catch_warnings` between two tests can bring about.
    atexit.register(setattr, warnings, "filters", warnings.filters[:])
"""


def test_a_run_that_loads_sentencepiece_ends_alive(tmp_path: Path) -> None:
    tests = tmp_path / "test_loads.py"
    tests.write_text(LOADS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(tests)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "1 passed" in ended.stdout) == (0, True), ended.stdout + ended.stderr
