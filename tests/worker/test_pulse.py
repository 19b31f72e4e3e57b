from __future__ import annotations

from hanmaru_worker.pulse import Pulse
from hypothesis import given
from hypothesis import strategies as st

LIMIT_S = 10.0


def test_a_scheduler_whose_snapshot_stands_still_hangs() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.heartbeat(100.0, now=1.0)
    for now in (2.0, 6.0, 11.0):
        pulse.heartbeat(100.0, now)
        pulse.token(asked_at=now)
    assert pulse.complaint(11.0) is None
    assert "scheduler has not moved for 11 s" in (pulse.complaint(12.0) or "")


def test_a_scheduler_that_moves_without_tokens_hangs() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.token(asked_at=1.0)
    pulse.heartbeat(100.0, now=11.0)
    assert pulse.complaint(11.0) is None
    pulse.heartbeat(101.0, now=11.5)
    assert "not produced a token for 12 s" in (pulse.complaint(12.5) or "")


def test_a_late_answer_counts_from_when_it_was_asked() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.token(asked_at=8.0)
    pulse.token(asked_at=2.0)
    pulse.heartbeat(1.0, now=15.0)
    assert pulse.complaint(17.0) is None


def test_silence_while_nobody_looked_proves_nothing() -> None:
    pulse = Pulse(LIMIT_S, now=0.0)
    pulse.restart(now=100.0)
    assert pulse.complaint(109.0) is None
    assert pulse.complaint(111.0) is not None


@given(pauses=st.lists(st.floats(min_value=0.0, max_value=LIMIT_S - 0.01), max_size=30))
def test_an_engine_that_shows_both_signs_within_the_limit_never_hangs(pauses: list[float]) -> None:
    now = 0.0
    pulse = Pulse(LIMIT_S, now)
    for turn, pause in enumerate(pauses):
        now += pause
        assert pulse.complaint(now) is None
        pulse.heartbeat(float(turn), now)
        pulse.token(now)
