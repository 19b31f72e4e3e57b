"""`hanmaru down`: end the `hanmaru up` of this machine's state folder, from any shell. Called by `main`."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_cli.state import StateFolder
from hanmaru_cli.terminal import Terminal

ORDERLY_S = 120.0
"""Gateway, workers and Redis end one after the other, each with a limit of its own."""
KILLED_S = 20.0
_LOOK_INTERVAL_S = 0.2


def run(home: Path, terminal: Terminal) -> int:
    """Ask it to end, wait until nothing of it is left; kill it when that takes too long. Returns the exit status."""
    state = StateFolder(home)
    if not state.root.is_dir() or _is_free(state):
        terminal.say("Nothing is running.")
        return 0
    for number, limit_s in ((signal.SIGTERM, ORDERLY_S), (signal.SIGKILL, KILLED_S)):
        running = state.read_running()
        if running is not None and running.lives():
            with suppress(ProcessLookupError):
                os.kill(running.pid, number)
        if _wait(state, limit_s, terminal):
            terminal.say("Ended.")
            return 0
    raise HanmaruError(ErrorCode.INTERNAL, f"something still holds {state.root / 'lock'}; look at its processes")


def _wait(state: StateFolder, limit_s: float, terminal: Terminal) -> bool:
    started = time.monotonic()
    while time.monotonic() - started < limit_s:
        if _is_free(state):
            terminal.end_progress()
            return True
        terminal.progress(time.monotonic() - started, "ending: running answers may finish")
        time.sleep(_LOOK_INTERVAL_S)
    return False


def _is_free(state: StateFolder) -> bool:
    lock = state.try_lock()
    if lock is None:
        return False
    os.close(lock)
    return True
