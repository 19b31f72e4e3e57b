"""Finding and ending processes by a mark in their environment, whatever parent, session or title they have by now.

Every part that `up` starts carries the run's id and the part's name; what the part starts inherits both. Ray's daemons
and the engine's schedulers can outlive a killed parent, so this is how none is left. Used by `processes`, `guard` and
`up`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

ENV_UP_ID = "HANMARU_UP_ID"
ENV_UP_PART = "HANMARU_UP_PART"

KEEP_READABLE = {"SPT_NOENV": "1"}
"""Read by setproctitle, which Ray and SGLang use: a new title leaves the environment, and so the mark, as it is."""

_LOOK_INTERVAL_S = 0.05
_KILL_ROUND_S = 2.0


def marked(marks: Mapping[str, str]) -> list[psutil.Process]:
    """Live processes whose environment has all of `marks`, this one left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or not _lives(process):
                continue
            environment = process.environ()
            if all(environment.get(name) == value for name, value in marks.items()):
                found.append(process)
    return found


def wait_until_ended(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still live after `timeout_s`, or none as soon as all have ended."""
    deadline = time.monotonic() + timeout_s
    while left := [process for process in processes if _lives(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_INTERVAL_S)
    return left


def kill_marked(marks: Mapping[str, str], *, rounds: int = 5) -> list[psutil.Process]:
    """Kill them, and what they managed to start meanwhile, until none is found; returns what is left after `rounds`."""
    left = marked(marks)
    for _ in range(rounds):
        if not left:
            break
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_ended(left, _KILL_ROUND_S)
        left = marked(marks)
    return left


def _lives(process: psutil.Process) -> bool:
    # One that nobody has waited for yet (a container's first process may never do so) is dead all the same.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
