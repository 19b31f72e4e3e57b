"""Which object is reconciled next, and when: the work queue without a clock, a task or an effect.

`queue` runs it. One object is never in two hands; what is asked for again meanwhile runs once more afterwards. Two
classes: direct changes go first, a resync's keys fill the gaps, and every ninth turn is theirs however much changes.
A key that failed waits, longer each time; a change of it brings the wait down to a second, not to nothing, or a
reconcile that writes and then fails would be woken by its own writes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass

from hanmaru_operator.types import ObjectKey

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 60.0
SHORTEST_WAIT_AFTER_FAILURE_S = 1.0
_DIRECT_TURNS = 8


@dataclass(slots=True)
class _State:
    """Of one key that is not idle."""

    ready_at: float | None = None
    """Since when it waits for a worker. None: it does not."""
    is_direct: bool = False
    is_running: bool = False
    runs_again: bool = False
    """It was asked for while it ran."""
    due: float | None = None
    """When it is asked for by itself."""
    not_before: float = 0.0
    """The server asked to wait until then, or it has just failed."""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A key to reconcile now."""

    key: ObjectKey
    waited_s: float
    """Since it could have run."""
    retries: int
    """Failures just before."""


class Work:
    """Keys in all their states. Every method is told the time, which never goes back."""

    def __init__(self) -> None:
        self._states: dict[ObjectKey, _State] = {}
        self._direct: OrderedDict[ObjectKey, None] = OrderedDict()
        self._slow: OrderedDict[ObjectKey, None] = OrderedDict()
        self._timers: list[tuple[float, int, ObjectKey]] = []
        self._timer_count = 0
        self._direct_turns = 0

    @property
    def depth(self) -> int:
        """Keys that could run now and wait for a worker."""
        return len(self._direct) + len(self._slow)

    @property
    def running(self) -> int:
        """Keys in workers' hands."""
        return sum(state.is_running for state in self._states.values())

    def add(self, key: ObjectKey, now: float, *, is_direct: bool = True) -> None:
        """Ask for a key to be reconciled soon; `is_direct` says that something changed and somebody waits."""
        state = self._states.setdefault(key, _State())
        state.is_direct |= is_direct
        if state.is_running:
            state.runs_again = True
        elif state.not_before > now:
            self._wait_until(key, state, state.not_before)
        else:
            self._make_ready(key, state, now)

    def take(self, now: float) -> Turn | None:
        """The next key to run. It stays in hand until `done` or `failed`."""
        self._ripen(now)
        queue = self._next_queue()
        if queue is None:
            return None
        key, _ = queue.popitem(last=False)
        state = self._states[key]
        waited_s = now - (now if state.ready_at is None else state.ready_at)
        state.ready_at, state.is_direct, state.is_running, state.runs_again, state.due = None, False, True, False, None
        return Turn(key, waited_s, state.failures)

    def done(self, key: ObjectKey, now: float, look_again_s: float | None = None) -> None:
        """It went well; `look_again_s`: run it again by then though nothing may change."""
        state = self._release(key)
        state.failures, state.not_before = 0, 0.0
        if state.runs_again:
            self._make_ready(key, state, now)
        if look_again_s is not None:
            self._wait_until(key, state, now + look_again_s)
        self._forget_if_idle(key, state)

    def failed(self, key: ObjectKey, now: float, *, retry_after_s: float | None = None) -> None:
        """It did not; it runs again after its back-off, or after what the server asked for when that is longer."""
        state = self._release(key)
        backoff_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(state.failures, 16))
        state.failures += 1
        asked_s = retry_after_s or 0.0
        state.not_before = now + max(asked_s, min(backoff_s, SHORTEST_WAIT_AFTER_FAILURE_S))
        wait_s = max(asked_s, backoff_s)
        self._wait_until(key, state, state.not_before if state.runs_again else now + wait_s)

    def next_due(self) -> float | None:
        """When a waiting key becomes ready by itself. None: none waits, or one is ready already and `take` gives it."""
        while self._timers and not self._is_valid(self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _next_queue(self) -> OrderedDict[ObjectKey, None] | None:
        if self._direct and (self._direct_turns < _DIRECT_TURNS or not self._slow):
            self._direct_turns += 1
            return self._direct
        self._direct_turns = 0
        return self._slow or None

    def _ripen(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._timers)
            state = self._states[key]
            state.due = None
            if state.not_before > now:
                self._wait_until(key, state, state.not_before)
            else:
                self._make_ready(key, state, due)

    def _make_ready(self, key: ObjectKey, state: _State, since: float) -> None:
        if state.ready_at is None:
            state.ready_at = since
        if state.is_direct:
            self._slow.pop(key, None)
            self._direct.setdefault(key)
        elif key not in self._direct:
            self._slow.setdefault(key)

    def _wait_until(self, key: ObjectKey, state: _State, due: float) -> None:
        if state.due is not None and state.due <= due:
            return
        state.due = due
        self._timer_count += 1
        heapq.heappush(self._timers, (due, self._timer_count, key))

    def _is_valid(self, timer: tuple[float, int, ObjectKey]) -> bool:
        state = self._states.get(timer[2])
        return state is not None and state.due == timer[0]

    def _release(self, key: ObjectKey) -> _State:
        state = self._states[key]
        assert state.is_running, f"{key} is in nobody's hands"
        state.is_running = False
        return state

    def _forget_if_idle(self, key: ObjectKey, state: _State) -> None:
        if state.ready_at is None and state.due is None:
            del self._states[key]
