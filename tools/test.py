"""`make test` without ARGS: all tests, in two lots side by side, then those with real nodes.

The lot of the operator, the chart and Redis mostly waits, the other mostly computes, so together they take little
longer than the longer one alone. Clusters of real nodes start containers and engines with deadlines of their own: they
come last and have the machine to themselves. Each lot is one pytest run with fixtures of its own; the second one's
output follows the first one's. Exit status 1 when one failed. Ctrl-C ends the lots that run, whose results are told as
ever, and starts no other. A lot that dies of a signal, which may be after its last test passed, shows where each thread
was (faulthandler), and the last lines name it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
WAITING = ("tests/operator", "tests/cluster", "tests/charts", "tests/redis")
ON_REAL_NODES = ("tests/cluster/test_real.py", "tests/cluster/test_real_traces.py", "tests/images", "tests/e2e")
OTHERS = "all the other tests"
POLITELY = ("nice", "-n", "5")
"""What waits gives way: the other lot holds requests to deadlines of a second."""
END_S = 60.0
"""For an interrupted lot to take its processes down."""


def main() -> int:
    """Run all lots; 0 when all tests passed."""
    begun_s = time.monotonic()
    codes, is_interrupted = _side_by_side()
    if not is_interrupted:
        print(f"\n=== {' '.join(ON_REAL_NODES)}, alone ===\n", flush=True)
        alone, is_interrupted = _wait({" ".join(ON_REAL_NODES): _start([*ON_REAL_NODES], None)})
        codes |= alone
    print(f"all lots{' until Ctrl-C' if is_interrupted else ''}: {time.monotonic() - begun_s:.0f} s")
    for lot, code in codes.items():
        print(f"  {lot}: {_outcome(code)}")
    return int(is_interrupted or any(codes.values()))


def _side_by_side() -> tuple[dict[str, int], bool]:
    """The two lots that share the machine; as `_wait`."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        # A cache folder of its own: both write which tests failed last.
        waiting = [*WAITING, *_without(ON_REAL_NODES), "-o", "cache_dir=.pytest_cache/waiting"]
        beside = _start(waiting, output, before=POLITELY)
        first = _start(_without((*WAITING, *ON_REAL_NODES)), None)
        ended = _wait({OTHERS: first, " ".join(WAITING): beside})
        output.seek(0)
        print(f"\n=== {' '.join(WAITING)}, run beside the above ===\n")
        for line in output:
            print(line, end="")
    return ended


def _wait(lots: Mapping[str, subprocess.Popen[bytes]]) -> tuple[dict[str, int], bool]:
    """Exit statuses of lots that run, and whether Ctrl-C ended them."""
    try:
        return {name: lot.wait() for name, lot in lots.items()}, False
    except KeyboardInterrupt:
        return {name: _end(lot) for name, lot in lots.items()}, True


def _without(folders: Sequence[str]) -> list[str]:
    return [f"--ignore={folder}" for folder in folders]


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
