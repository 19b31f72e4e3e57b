from __future__ import annotations

from hanmaru_worker.plugin.tier.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, Breaker


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.lets_through()
        breaker.failed()
    return breaker


def test_some_failures_in_a_row_pause_all_calls() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert not breaker.lets_through()
    clock.advance(PAUSE_S * 0.9)
    assert not breaker.lets_through()


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker(Clock())
    for _ in range(3 * FAILURES):
        breaker.failed()
        breaker.succeeded()
    assert breaker.lets_through()


def test_after_the_pause_one_call_may_try() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.advance(PAUSE_S)
    assert breaker.lets_through()
    assert not breaker.lets_through()
    breaker.succeeded()
    assert breaker.lets_through()
    assert breaker.lets_through()


def test_asking_whether_calls_are_paused_takes_nobodys_turn() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert breaker.is_paused
    clock.advance(PAUSE_S)
    assert not breaker.is_paused
    assert not breaker.is_paused
    assert breaker.lets_through()
    assert breaker.is_paused, "somebody tries"
    breaker.succeeded()
    assert not breaker.is_paused


def test_pauses_double_up_to_a_bound_and_end_with_the_first_success() -> None:
    clock = Clock()
    breaker, pause_s = broken(clock), PAUSE_S
    for _ in range(10):
        clock.advance(pause_s)
        assert breaker.lets_through()
        breaker.failed()
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        clock.advance(pause_s * 0.99)
        assert not breaker.lets_through()
        clock.advance(-pause_s * 0.99)
    clock.advance(pause_s)
    assert breaker.lets_through()
    breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed()
    clock.advance(PAUSE_S)
    assert breaker.lets_through()
