"""What holds for every test run: no process outlives it, and any test may ask for the control plane."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import psutil
import pytest

pytest_plugins = ["hanmaru_testing.cluster_fixtures"]

_MARKER = "HANMARU_TEST_RUN"
_GRACE_S = 10.0


def pytest_configure() -> None:
    # Children inherit it, whatever session or parent they end up with.
    os.environ[_MARKER] = uuid.uuid4().hex
    # Ray and SGLang rename their processes with setproctitle, which would write over the environment they show.
    os.environ["SPT_NOENV"] = "1"


def _processes_of_this_run() -> list[psutil.Process]:
    marker = f"{_MARKER}={os.environ[_MARKER]}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and marker in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
        except (OSError, psutil.NoSuchProcess):
            continue  # ended meanwhile, or another user's
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _, left = psutil.wait_procs(_processes_of_this_run(), timeout=_GRACE_S)
    for process in left:
        with process.oneshot():
            print(f"\nleft running by the tests: {process.pid} {' '.join(process.cmdline())[:200]}")
        process.kill()
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
