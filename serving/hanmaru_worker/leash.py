"""Runs one program so that nothing of it outlives whoever asked: `python -m hanmaru_worker.leash FOLDER PROGRAM ARGS…`.

`engine` starts it in a session of its own and holds the other end of its standard input. It passes SIGTERM and SIGINT
on to the program and exits with the program's status. When the standard input ends (the supervisor closed it, or died
in whatever way) or the program ends, it kills every descendant, also those that left the group or lost their parent:
orphans become its children, because it is their subreaper. Last it removes FOLDER, where the keys are.
Linux only; imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
KILL_DEADLINE_S = 5.0
"""How long killed processes may take to vanish; one in uninterruptible sleep is left to the kernel."""


def main(folder: Path, argv: Sequence[str]) -> int:
    """Exit status of the program; 128 + n when signal n ended it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_the_leash() -> None:  # covers a SIGKILL of the leash itself
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    # Safe before exec: this process has one thread.
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=die_with_the_leash)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: program.send_signal(received))
    ended = os.pidfd_open(program.pid)
    select.select([ended, sys.stdin.fileno()], [], [])
    status = program.poll()
    _kill_descendants(time.monotonic() + KILL_DEADLINE_S)
    shutil.rmtree(folder, ignore_errors=True)
    if status is None:
        return 128 + signal.SIGKILL
    return status if status >= 0 else 128 - status


def _kill_descendants(deadline: float) -> None:
    """Kill until none is left: a process may start another one while it is looked for."""
    while (found := _descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # "pid (name) state parent …"; the name may hold spaces and brackets.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
