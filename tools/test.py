"""`make test` without ARGS: all tests, in two lots side by side.

The lot of the operator, the chart and their clusters mostly waits, the other mostly computes, so together they take
little longer than the longer one alone. Each lot is one pytest run with fixtures of its own; the second one's output
follows the first one's. Exit status 1 when either failed. A lot that dies of a signal, which may be after its last
test passed, shows where each thread was (faulthandler), and the last line names it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
WAITING = ("tests/operator", "tests/cluster", "tests/charts", "tests/images", "tests/redis", "tests/e2e")
OTHERS = "all the other tests"
POLITELY = ("nice", "-n", "5")
"""What waits gives way: the other lot holds requests to deadlines of a second."""
END_S = 60.0
"""For an interrupted lot to take its processes down."""


def main() -> int:
    """Run both lots; 0 when all tests passed."""
    begun_s = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        # A cache folder of its own: both write which tests failed last.
        beside = _start([*WAITING, "-o", "cache_dir=.pytest_cache/waiting"], output, before=POLITELY)
        first = _start([f"--ignore={folder}" for folder in WAITING], None)
        try:
            codes = [first.wait(), beside.wait()]
        except KeyboardInterrupt:
            codes = [_end(first), _end(beside)]
        output.seek(0)
        print(f"\n=== {' '.join(WAITING)}, run beside the above ===\n")
        for line in output:
            print(line, end="")
    print(f"both lots: {time.monotonic() - begun_s:.0f} s")
    for lot, code in zip((OTHERS, " ".join(WAITING)), codes, strict=True):
        print(f"  {lot}: {_outcome(code)}")
    return int(any(codes))


def _start(arguments: list[str], output: IO[str] | None, *, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    # pytest's own faulthandler ends with the last test; this one sees the interpreter's end too.
    command = [*before, sys.executable, "-X", "faulthandler", "-m", "pytest", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def _end(lot: subprocess.Popen[bytes]) -> int:
    """The terminal's Ctrl-C reached it as well; it ends its own processes."""
    try:
        return lot.wait(END_S)
    except subprocess.TimeoutExpired:
        lot.kill()
        return lot.wait()


def _outcome(code: int) -> str:
    """Of a lot's exit status, which is a signal's number below 0 when that killed it."""
    if code < 0:
        return f"CRASHED: killed by {signal.Signals(-code).name}; its threads' stacks are at the end of its output"
    return "passed" if code == 0 else f"failed, exit status {code}"


if __name__ == "__main__":
    raise SystemExit(main())
