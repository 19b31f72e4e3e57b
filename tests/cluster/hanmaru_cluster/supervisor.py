"""Owns every process of a cluster: `python -m hanmaru_cluster.supervisor FOLDER`, started by `processes`.

It reads one JSON command a line from its standard input and answers each with one line. When that input ends (whoever
started it closed it, or died in whatever way) it kills all programs and removes FOLDER. When it is killed itself,
the kernel kills its programs, because each asked to die with it: they are started from its only thread, which a test
process could not promise (the signal comes when the *thread* that started a program ends).
Linux only; imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


class Supervisor:
    """The programs by name, and the commands on them."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._libc = ctypes.CDLL(None)

    def answer(self, command: dict[str, Any]) -> Any:
        """Carry out one command. Raises OSError when a program cannot be started, KeyError for one never started."""
        match command:
            case {"do": "start", "name": name, "argv": argv, "log": log, "environ": environ}:
                return self._start(name, argv, log, environ)
            case {"do": "stop", "names": names, "deadline_s": deadline_s}:
                return self._stop(names, deadline_s)
            case {"do": "kill", "name": name}:
                self._running[name].kill()
                return self._running.pop(name).wait()
            case {"do": "ended"}:
                statuses = {name: process.poll() for name, process in self._running.items()}
                return {name: status for name, status in statuses.items() if status is not None}
        raise ValueError(f"unknown command {command.get('do')!r}")

    def kill_all(self) -> None:
        """End everything at once, and wait for it."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()

    def _start(self, name: str, argv: list[str], log: str, environ: dict[str, str]) -> int:
        def die_with_the_supervisor() -> None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with Path(log).open("ab") as output:
            # preexec_fn is safe here: this process has one thread.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                preexec_fn=die_with_the_supervisor,
            )
        self._running[name] = process
        return process.pid

    def _stop(self, names: list[str], deadline_s: float) -> dict[str, int]:
        """Ask them all, then wait; a program that does not end in time is killed."""
        stopping = {name: self._running.pop(name) for name in names if name in self._running}
        for process in stopping.values():
            process.terminate()
        deadline = time.monotonic() + deadline_s
        for process in stopping.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return {name: process.wait() for name, process in stopping.items()}


def serve() -> None:
    """Serve commands until the standard input ends; then kill all programs."""
    supervisor = Supervisor()
    try:
        for line in sys.stdin:
            try:
                reply = {"done": supervisor.answer(json.loads(line))}
            except Exception as error:  # told to whoever asked; this process must live on to clean up
                reply = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)
    finally:
        supervisor.kill_all()


if __name__ == "__main__":
    try:
        serve()
    finally:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
