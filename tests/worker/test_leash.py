from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hanmaru_testing.worker_process import wait_until_gone

# Notes its own pid and those of a child in a session of its own and of a grandchild without a parent, then waits.
PROGRAM = """
import os, signal, subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
stray = subprocess.Popen(sleeper, start_new_session=True).pid
options = "start_new_session=True, stdout=subprocess.DEVNULL"
nested = f"import subprocess; print(subprocess.Popen({sleeper!r}, {options}).pid)"
orphan = subprocess.check_output([sys.executable, "-c", nested], text=True).strip()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print(os.getpid(), stray, orphan, flush=True)
time.sleep(600)
"""


class Leashed:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hanmaru_worker.leash", str(folder), sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        pids = [int(pid) for pid in self.process.stdout.readline().split()]
        self.program, *strays = [psutil.Process(pid) for pid in pids]
        self.everything = [self.program, *strays]


@pytest.fixture
def leashed(tmp_path: Path) -> Iterator[Leashed]:
    leashed = Leashed(tmp_path / "secrets")
    yield leashed
    for process in leashed.everything:
        if process.is_running():
            process.kill()
    leashed.process.kill()
    leashed.process.wait(10)
    assert leashed.process.stdout is not None
    leashed.process.stdout.close()
    if leashed.process.stdin is not None:
        leashed.process.stdin.close()


def test_the_end_of_standard_input_ends_everything(leashed: Leashed) -> None:
    assert leashed.process.stdin is not None
    leashed.process.stdin.close()
    assert leashed.process.wait(10) == 128 + signal.SIGKILL
    assert wait_until_gone(leashed.everything, 2) == []


def test_a_program_that_ends_takes_its_strays_along(leashed: Leashed) -> None:
    leashed.program.send_signal(signal.SIGTERM)
    assert leashed.process.wait(10) == 5
    assert wait_until_gone(leashed.everything, 2) == []


def test_sigterm_reaches_the_program_and_its_status_comes_back(leashed: Leashed) -> None:
    leashed.process.terminate()
    assert leashed.process.wait(10) == 5
    assert wait_until_gone(leashed.everything, 2) == []


def test_a_program_killed_by_a_signal_says_which(leashed: Leashed) -> None:
    leashed.program.kill()
    assert leashed.process.wait(10) == 128 + signal.SIGKILL


def test_a_stopped_program_ends_too(leashed: Leashed) -> None:
    leashed.program.suspend()
    assert leashed.process.stdin is not None
    leashed.process.stdin.close()
    assert leashed.process.wait(10) == 128 + signal.SIGKILL
    assert wait_until_gone(leashed.everything, 2) == []


def test_the_program_dies_with_a_leash_that_is_killed(leashed: Leashed) -> None:
    leashed.process.kill()
    assert wait_until_gone([leashed.program], 5) == []


def test_whoever_held_the_leash_may_die_in_any_way(tmp_path: Path) -> None:
    """The holder is killed by SIGKILL, with no chance to close anything."""
    pids, secrets = tmp_path / "pids", tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "keys.yaml").touch()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"out = open({str(pids)!r}, 'w')\n"
            f"program = [sys.executable, '-c', {PROGRAM!r}]\n"
            f"leash = [sys.executable, '-m', 'hanmaru_worker.leash', {str(secrets)!r}, *program]\n"
            "subprocess.Popen(leash, stdin=subprocess.PIPE, stdout=out, start_new_session=True)\n"
            "time.sleep(600)",
        ]
    )
    deadline = time.monotonic() + 20
    while not (pids.exists() and pids.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.1)
    leashed = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(10)
    assert len(leashed) == 3
    assert wait_until_gone(leashed, 10) == []
    deadline = time.monotonic() + 5
    while secrets.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not secrets.exists()
