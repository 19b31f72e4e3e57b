from __future__ import annotations

from hanmaru_worker.pulse import Pulse
from hypothesis import given
from hypothesis import strategies as st

LIMIT_S = 10.0


def test_a_scheduler_whose_snapshot_stands_still_hangs() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    for now in (1.0, 6.0, 11.0):
        pulse.heartbeat(100.0, now)
        pulse.asked(now)
        pulse.answered()
    assert pulse.complaint(11.0) is None
    assert "scheduler has not moved for 12 s" in (pulse.complaint(13.0) or "")


def test_a_scheduler_that_moves_without_tokens_hangs() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.asked(1.0)
    pulse.answered()
    for now in range(30, 42):
        pulse.asked(float(now))
        pulse.heartbeat(float(now), float(now))
    assert pulse.complaint(40.0) is None
    assert "asked for a token 11 s ago" in (pulse.complaint(41.0) or "")


def test_silence_while_nobody_looked_proves_nothing() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.asked(1.0)
    pulse.restart(now=100.0)
    assert pulse.complaint(109.0) is None
    assert pulse.complaint(111.0) is not None


@given(pauses=st.lists(st.floats(min_value=0.0, max_value=LIMIT_S - 0.01), max_size=30))
def test_an_engine_that_shows_both_signs_within_the_limit_never_hangs(pauses: list[float]) -> None:
    now = 0.0
    pulse = Pulse(LIMIT_S, now)
    for turn, pause in enumerate(pauses):
        pulse.asked(now)
        now += pause
        assert pulse.complaint(now) is None
        pulse.heartbeat(float(turn), now)
        pulse.answered()
