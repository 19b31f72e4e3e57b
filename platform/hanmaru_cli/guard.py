"""The process that outlives `hanmaru up` by a few seconds, however `up` ends, and leaves nothing behind.

`up` starts it first and holds the other end of its standard input; when that end closes, the guard asks every process
of the run to end, kills what is left, removes the run's temporary folder, and ends. It also holds the state folder's
lock (inherited), so that the next `up` waits until all is gone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

from hanmaru_cli.marks import ENV_UP_ID, kill_marked, marked, wait_until_ended

GRACE_S = 5.0
"""From SIGTERM to SIGKILL when `up` itself was killed. After an ordinary end nothing is left to wait for."""
NO_GRACE = b"!"
"""Written by an `up` that was asked twice to end: kill at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Wait for the end of standard input, then clean up. Exit status 1 when something could not be killed."""
    parser = argparse.ArgumentParser(prog="hanmaru-guard")
    parser.add_argument("--temporary", required=True)
    options = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mark = {ENV_UP_ID: os.environ[ENV_UP_ID]}
    in_a_hurry = NO_GRACE in _read_to_end()
    if not in_a_hurry:
        left = marked(mark)
        # Whoever leads a session is a part; its own children are for it to end.
        for process in left:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == process.pid:
                    process.terminate()
        wait_until_ended(left, GRACE_S)
    left = kill_marked(mark)
    shutil.rmtree(options.temporary, ignore_errors=True)
    return 1 if left else 0


def _read_to_end() -> bytes:
    said = b""
    while piece := os.read(sys.stdin.fileno(), 64):
        said += piece
    return said


if __name__ == "__main__":
    sys.exit(main())
