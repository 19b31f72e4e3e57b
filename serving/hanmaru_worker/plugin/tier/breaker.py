"""When Redis is left alone for a while because it failed. Pure but for the clock it is given; `store` asks it.

Without it each request would wait for the deadline of a Redis that hangs. After some failures in a row nobody asks for
a second, then one call may try; if that fails too the pause doubles.
"""

from __future__ import annotations

from collections.abc import Callable

FAILURES = 3
PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Breaker:
    """Belongs to one event loop; only `is_paused` may be asked from elsewhere."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures = 0
        self._pause_s = PAUSE_S
        self._closed_until = 0.0
        self._is_tried = False

    @property
    def is_lost(self) -> bool:
        """Whether Redis failed so often in a row that calls are held back, until one succeeds."""
        return self._failures >= FAILURES

    @property
    def is_paused(self) -> bool:
        """Whether a call made now would not be let through. Asking takes nobody's turn."""
        return self.is_lost and (self._is_tried or self._now() < self._closed_until)

    def lets_through(self) -> bool:
        """Whether a call may be made. Whoever is let through says how it ended, by `succeeded` or `failed`."""
        if self.is_paused:
            return False
        self._is_tried = self.is_lost
        return True

    def succeeded(self) -> None:
        """Redis answered in time."""
        self._failures, self._pause_s, self._is_tried = 0, PAUSE_S, False

    def failed(self) -> None:
        """It did not, or with nothing of use."""
        if self.is_lost and self._is_tried:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        self._failures += 1
        self._is_tried = False
        self._closed_until = self._now() + self._pause_s
