"""Starts and ends the programs of a cluster through one `supervisor` process, so that none outlives the test run.

`control_plane` and `kwok` use it. Commands may come from any thread. Programs get only the environment they are given,
plus the test run's marker, by which `tests/conftest.py` finds what was left running.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_DEADLINE_S = 10.0
_MARKER = "HANMARU_TEST_RUN"
_INHERITED = ("PATH", "TMPDIR", _MARKER)


class Processes:
    """The processes of one cluster, and its folder: logs and a home for each program; both go when it is closed."""

    def __init__(self, folder: Path, supervisor: Sequence[str] | None = None) -> None:
        """`supervisor` names another module, with its arguments, that serves the supervisor's commands."""
        self.folder = folder
        self._lock = threading.Lock()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", *(supervisor or ("hanmaru_cluster.supervisor", str(folder)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            start_new_session=True,  # Ctrl-C in a terminal reaches the test run alone, which then ends us in order
        )

    def start(self, name: str, argv: Sequence[str], *, environ: Mapping[str, str] | None = None) -> int:
        """Start a program and return its pid. Raises RuntimeError when the file cannot be run."""
        kept = {name: value for name in _INHERITED if (value := os.environ.get(name))}
        return int(
            self._ask(
                {
                    "do": "start",
                    "name": name,
                    "argv": list(argv),
                    "log": str(self.log_path(name)),
                    "environ": {**kept, "HOME": str(self.folder), **(environ or {})},
                }
            )
        )

    def stop(self, *names: str) -> None:
        """SIGTERM to all of these, SIGKILL to those still there after STOP_DEADLINE_S; returns when all ended."""
        self._ask({"do": "stop", "names": names, "deadline_s": STOP_DEADLINE_S})

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        self._ask({"do": "kill", "name": name})

    def ended(self) -> dict[str, int]:
        """Exit status of each program that ended without being asked to."""
        ended: dict[str, int] = self._ask({"do": "ended"})
        return ended

    def is_alive(self) -> bool:
        """Whether there is still a supervisor, which nothing but a kill from elsewhere ends before `close`."""
        return self._supervisor.poll() is None

    def log_path(self, name: str) -> Path:
        """Where a program's output goes."""
        return self.folder / f"{name}.log"

    def close(self) -> None:
        """Kill what still runs, remove the folder."""
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._supervisor.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # where the supervisor was killed before it could

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        with self._lock:
            self._supervisor.stdin.write(json.dumps(command) + "\n")
            self._supervisor.stdin.flush()
            line = self._supervisor.stdout.readline()
        if not line:
            raise RuntimeError("the cluster's supervisor is gone")
        reply = json.loads(line)
        if "failed" in reply:
            raise RuntimeError(f"{command['do']} {command.get('name', '')}: {reply['failed']}")
        return reply["done"]
