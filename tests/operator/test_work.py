"""The work queue's order and its promises, on a clock of its own."""

from __future__ import annotations

import pytest
from hanmaru_operator.types import ObjectKey
from hanmaru_operator.work import FIRST_RETRY_S, LONGEST_RETRY_S, SHORTEST_WAIT_AFTER_FAILURE_S, Turn, Work
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule


def key(name: str | int) -> ObjectKey:
    return ObjectKey("ModelDeployment", "a", str(name))


def taken(work: Work, now: float) -> str | None:
    turn = work.take(now)
    return None if turn is None else turn.key.name


def test_a_key_asked_for_often_runs_once() -> None:
    work = Work()
    for _ in range(3):
        work.add(key("x"), 0)
    assert work.depth == 1
    assert taken(work, 0) == "x"
    assert taken(work, 0) is None


def test_a_key_asked_for_while_it_runs_runs_once_more() -> None:
    work = Work()
    work.add(key("x"), 0)
    work.take(0)
    work.add(key("x"), 1)
    work.add(key("x"), 1)
    assert taken(work, 1) is None
    work.done(key("x"), 2)
    assert taken(work, 2) == "x"
    work.done(key("x"), 3)
    assert taken(work, 3) is None


def test_a_change_overtakes_a_resync_but_does_not_stop_it() -> None:
    work = Work()
    for index in range(1000):
        work.add(key(f"slow{index}"), 0, is_direct=False)
    for index in range(20):
        work.add(key(f"direct{index}"), 0)
    order = [taken(work, 0) for _ in range(22)]
    assert order[:8] == [f"direct{i}" for i in range(8)]
    assert order[8] == "slow0"
    assert sum(name is not None and name.startswith("direct") for name in order) == 20


def test_a_resynced_key_that_changes_moves_up() -> None:
    work = Work()
    work.add(key("other"), 0, is_direct=False)
    work.add(key("x"), 0, is_direct=False)
    work.add(key("x"), 1)
    turn = work.take(2)
    assert turn == Turn(key("x"), waited_s=2, retries=0)


def test_looking_again_happens_at_its_time_and_a_run_before_makes_it_moot() -> None:
    work = Work()
    work.add(key("x"), 0)
    work.take(0)
    work.done(key("x"), 0, look_again_s=30)
    assert taken(work, 29) is None
    assert work.next_due() == 30
    work.add(key("x"), 10)
    assert taken(work, 10) == "x"
    work.done(key("x"), 11)
    assert work.next_due() is None
    assert taken(work, 31) is None


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(1, FIRST_RETRY_S), (2, 2 * FIRST_RETRY_S), (3, 4 * FIRST_RETRY_S), (40, LONGEST_RETRY_S)]
)
def test_failures_wait_longer_each_time(failures: int, wait_s: float) -> None:
    work, now = Work(), 0.0
    work.add(key("x"), now)
    for _ in range(failures):
        assert taken(work, now) == "x"
        work.failed(key("x"), now)
        due = work.next_due()
        assert due is not None
        waited_s, now = due - now, due
    assert waited_s == wait_s


def test_what_the_server_asks_for_is_respected_even_when_the_key_changes() -> None:
    work = Work()
    work.add(key("x"), 0)
    work.take(0)
    work.failed(key("x"), 0, retry_after_s=7)
    work.add(key("x"), 1)
    assert taken(work, 6.9) is None
    assert taken(work, 7) == "x"


def test_a_change_shortens_a_long_back_off_but_not_to_nothing() -> None:
    work, now = Work(), 0.0
    work.add(key("x"), now)
    for _ in range(10):
        work.take(now)
        work.failed(key("x"), now)
        now = work.next_due() or 0.0
    work.take(now)
    work.failed(key("x"), now)
    work.add(key("x"), now)
    assert taken(work, now) is None
    assert taken(work, now + SHORTEST_WAIT_AFTER_FAILURE_S) == "x"


def test_success_forgets_failures() -> None:
    work = Work()
    work.add(key("x"), 0)
    work.take(0)
    work.failed(key("x"), 0)
    work.take(FIRST_RETRY_S)
    work.done(key("x"), 1)
    work.add(key("x"), 1)
    turn = work.take(1)
    assert turn is not None
    assert turn.retries == 0


class Queueing(RuleBasedStateMachine):
    """Whatever happens in whatever order: one hand a key, nothing lost, nothing run that nobody asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.now = 0.0
        self.running: set[ObjectKey] = set()
        self.wanted: set[ObjectKey] = set()

    keys = st.integers(0, 3).map(key)

    @rule(key=keys, is_direct=st.booleans())
    def ask(self, key: ObjectKey, is_direct: bool) -> None:
        self.work.add(key, self.now, is_direct=is_direct)
        self.wanted.add(key)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        turn = self.work.take(self.now)
        if turn is not None:
            assert turn.key not in self.running
            assert turn.key in self.wanted
            assert turn.waited_s >= 0
            self.running.add(turn.key)
            self.wanted.discard(turn.key)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), again=st.none() | st.floats(0, 10))
    def succeed(self, data: st.DataObject, again: float | None) -> None:
        done = data.draw(st.sampled_from(sorted(self.running, key=str)))
        self.running.discard(done)
        self.work.done(done, self.now, again)
        if again is not None:
            self.wanted.add(done)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), retry_after_s=st.none() | st.floats(0, 10))
    def fail(self, data: st.DataObject, retry_after_s: float | None) -> None:
        done = data.draw(st.sampled_from(sorted(self.running, key=str)))
        self.running.discard(done)
        self.work.failed(done, self.now, retry_after_s=retry_after_s)
        self.wanted.add(done)

    @invariant()
    def counts_agree(self) -> None:
        assert self.work.running == len(self.running)

    def teardown(self) -> None:
        for one in self.running:
            self.work.done(one, self.now)
        left = set(self.wanted)
        for _ in range(200):
            turn = self.work.take(self.now)
            if turn is not None:
                left.discard(turn.key)
                self.work.done(turn.key, self.now)
            else:
                due = self.work.next_due()
                if due is None:
                    break
                self.now = max(self.now, due)
        assert not left, f"asked for and never run: {left}"
        assert self.work.depth == 0


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
