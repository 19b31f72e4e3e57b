"""Nothing of a control plane outlives whoever started it, however that ends."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hanmaru_cluster.processes import Processes

END_DEADLINE_S = 10.0


class Up:
    """`python -m hanmaru_cluster up` in a process of its own, and everything it started."""

    def __init__(self) -> None:
        self._mark = f"HANMARU_TEST_RUN={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hanmaru_cluster", "up", "--nodes=1"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), name: value},
        )
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            said = next(line for line in lines if line.startswith("KUBECONFIG="))
        self.folder = Path(said.partition("=")[2].strip()).parent

    def running(self) -> dict[str, psutil.Process]:
        """By name, without the Python process that was started."""
        found = {}
        for process in psutil.process_iter(["name"]):
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if process.pid != self.process.pid and self._mark.encode() in environ:
                found[process.name()] = process
        return found


@pytest.fixture
def up() -> Iterator[Up]:
    started = Up()
    yield started
    started.process.kill()
    started.process.wait()
    shutil.rmtree(started.folder, ignore_errors=True)  # left when the supervisor itself was killed


def test_a_killed_run_leaves_no_process_and_no_file(up: Up) -> None:
    started = up.running()
    assert {"etcd", "kube-apiserver", "kube-scheduler", "kwok"} <= set(started)
    up.process.kill()
    _, left = psutil.wait_procs(list(started.values()), timeout=END_DEADLINE_S)
    assert not left
    assert not up.running()
    assert not up.folder.exists()


def test_a_killed_supervisor_takes_the_programs_with_it(up: Up) -> None:
    started = up.running()
    supervisor = next(process for process in started.values() if "hanmaru_cluster.supervisor" in process.cmdline())
    supervisor.kill()
    programs = [process for process in started.values() if process != supervisor]
    _, left = psutil.wait_procs(programs, timeout=END_DEADLINE_S)
    assert not left


def test_an_interrupted_run_ends_everything_in_order(up: Up) -> None:
    started = up.running()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(END_DEADLINE_S) == 0
    assert not [process for process in started.values() if process.is_running()]
    assert not up.folder.exists()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Processes(folder)
    yield started
    started.close()


def _await_end(pid: int) -> None:
    """Also of a process that its parent has not asked about yet."""
    ended = os.pidfd_open(pid)
    assert select.select([ended], [], [], END_DEADLINE_S)[0]
    os.close(ended)


def test_a_program_that_ends_by_itself_is_told(processes: Processes) -> None:
    pid = processes.start("short", ["sh", "-c", "echo why; exit 3"])
    _await_end(pid)
    assert processes.ended() == {"short": 3}
    assert processes.log_path("short").read_text() == "why\n"


def test_a_program_that_ignores_the_request_is_killed(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmaru_cluster.processes.STOP_DEADLINE_S", 0.2)
    pid = processes.start("deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    processes.stop("deaf")
    assert not psutil.pid_exists(pid)
    assert processes.ended() == {}


def test_a_program_that_is_not_there_is_told(processes: Processes) -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        processes.start("none", ["/nowhere/program"])
