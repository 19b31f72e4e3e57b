"""The head's first process ends with what it waits for, and says which of them it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hanmaru_gateway.head import wait_for_both
from hanmaru_gateway.stop import Stop

pytestmark = pytest.mark.timeout(30)
RUNS = "import sys; sys.stdin.read()"


@contextmanager
def child(program: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("ray", "deploying", "said"),
    [
        ("raise SystemExit(3)", RUNS, ("ray.ended", 3)),
        ("raise SystemExit(3)", "raise SystemExit(0)", ("ray.ended", 3)),
        (RUNS, "raise SystemExit(4)", ("gateway.not_deployed", 4)),
    ],
)
def test_what_ended_first_is_what_is_said(
    ray: str, deploying: str, said: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with child(ray) as one, child(deploying) as other:
        assert wait_for_both(one, other, Stop()) == 1
    last = caplog.records[-1]
    assert (last.getMessage(), vars(last)["hanmaru_fields"]["exit_status"]) == said


def test_a_signal_ends_it_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    stop.ask()
    with child(RUNS) as one, child(RUNS) as other:
        assert wait_for_both(one, other, stop) == 0
    assert not caplog.records
