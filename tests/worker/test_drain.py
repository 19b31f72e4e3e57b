from __future__ import annotations

import pytest
from hanmaru_contracts.wire.worker import Load
from hanmaru_worker.drain import Drain, DrainStep

IDLE = Load()
RUNNING = Load(running_requests=1)
QUEUED = Load(queued_requests=1)
WAIT, DONE, TIMED_OUT = DrainStep.WAIT, DrainStep.DONE, DrainStep.TIMED_OUT


@pytest.mark.parametrize(
    ("loads", "steps"),
    [
        pytest.param([IDLE, IDLE, IDLE, IDLE], [WAIT, WAIT, WAIT, DONE], id="a late request may still come at first"),
        pytest.param([RUNNING, RUNNING, RUNNING, IDLE, IDLE, IDLE], [WAIT] * 5 + [DONE], id="running requests finish"),
        pytest.param([IDLE, IDLE, QUEUED, IDLE, IDLE, IDLE], [WAIT] * 5 + [DONE], id="a late request counts"),
        pytest.param([IDLE, IDLE, None, None, IDLE, IDLE, IDLE], [WAIT] * 6 + [DONE], id="silence is not quiet"),
        pytest.param([RUNNING] * 11, [WAIT] * 10 + [TIMED_OUT], id="time is over"),
        pytest.param([None] * 11, [WAIT] * 10 + [TIMED_OUT], id="a mute engine runs out of time"),
    ],
)
def test_a_drain_second_by_second(loads: list[Load | None], steps: list[DrainStep]) -> None:
    drain = Drain(timeout_s=10.0, now=100.0)
    assert [drain.step(load, 100.0 + second) for second, load in enumerate(loads)] == steps


def test_without_patience_an_idle_engine_still_ends_well() -> None:
    assert Drain(timeout_s=0.0, now=0.0).step(IDLE, 0.0) is DONE
    assert Drain(timeout_s=0.0, now=0.0).step(RUNNING, 0.0) is TIMED_OUT
