"""`tools/test.py` over a checkout of small tests: what it tells when it is interrupted, and which lots it starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/test.py"
START_S = 60.0
END_S = 60.0
PASSES = "def test_passes():\n    pass\n"
WAITS = """
import pathlib, time

def test_waits():
    pathlib.Path("{name}").touch()
    time.sleep(600)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One test in each place that a lot names, and one elsewhere."""
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOL, tmp_path / "tools")
    files = ["operator/test_o.py", "cluster/test_real.py", "cluster/test_real_traces.py", "cluster/test_c.py"]
    files += ["charts/test_h.py", "redis/test_r.py", "images/test_i.py", "e2e/test_e.py", "gateway/test_g.py"]
    for file in files:
        (tmp_path / "tests" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / file).write_text(PASSES)
    return tmp_path


@contextmanager
def started(checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """In a process group of its own, as at a terminal; nothing of it is left."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    tool = subprocess.Popen(
        [sys.executable, str(checkout / "tools/test.py")], env=environ, cwd=checkout, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # A run in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield tool
    finally:
        with suppress(ProcessLookupError):
            os.killpg(tool.pid, signal.SIGKILL)
        tool.wait(END_S)


def test_all_lots_run_when_nobody_interrupts(checkout: Path) -> None:
    with started(checkout) as tool:
        said, _ = tool.communicate(timeout=START_S + END_S)
    assert tool.returncode == 0, said
    assert said.count(": passed\n") == 3
    assert " alone ===" in said


def test_an_interrupted_run_tells_of_both_lots_and_starts_no_other(checkout: Path) -> None:
    (checkout / "tests/redis/test_waits.py").write_text(WAITS.format(name="waiting-lot"))
    (checkout / "tests/gateway/test_waits.py").write_text(WAITS.format(name="other-lot"))
    deadline_s = time.monotonic() + START_S
    with started(checkout) as tool:
        while not ((checkout / "waiting-lot").exists() and (checkout / "other-lot").exists()):
            assert tool.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        os.killpg(tool.pid, signal.SIGINT)
        said, _ = tool.communicate(timeout=END_S)
    assert tool.returncode == 1
    assert "run beside the above ===" in said
    assert said.count("KeyboardInterrupt") >= 2
    assert "4 passed" in said, "the waiting lot's own results"
    assert said.count("failed, exit status 2") == 2
    assert " alone ===" not in said
