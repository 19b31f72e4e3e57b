"""Waiting for a signal survives signals that come at any moment of the wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from hanmaru_gateway.stop import Stop

pytestmark = pytest.mark.timeout(60)
WAITS = """
import signal, sys, time
from hanmaru_gateway.stop import Stop

stop = Stop()
stop.on_signals()
signal.signal(signal.SIGALRM, lambda *_: stop.ask())
signal.setitimer(signal.ITIMER_REAL, 1e-4, 5e-5)
assert stop.wait(1)
end_s = time.monotonic() + 3
while time.monotonic() < end_s:
    stop.wait(0.001)
signal.setitimer(signal.ITIMER_REAL, 0)
assert stop.is_asked()
print("alive", flush=True)
"""
"""Some ten thousand signals during short waits: with a `threading.Event` in place of `Stop` it hangs at once."""


def test_a_signal_in_the_middle_of_a_wait_does_not_hang_it() -> None:
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_without_bound(number: signal.Signals) -> None:
    program = "from hanmaru_gateway.stop import Stop\ns = Stop()\ns.on_signals()\nprint('waits', flush=True)\ns.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        waiting.send_signal(number)
        assert waiting.wait(10) == 0


def test_it_stays_asked_however_often() -> None:
    stop = Stop()
    assert not stop.is_asked()
    began_s = time.monotonic()
    assert not stop.wait(0.05)
    assert time.monotonic() - began_s >= 0.05
    for _ in range(70_000):  # more than a pipe holds
        stop.ask()
    assert stop.wait()
    assert stop.is_asked()


def test_another_thread_can_ask() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.ask).start()
    assert stop.wait(10)
