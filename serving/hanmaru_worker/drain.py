"""When a draining worker is done. Pure: loads and times come in; `supervisor` acts on the answer.

A gateway may still send for a moment after the record says `draining`, because it reads records once a second; and the
engine's snapshot shows a request only once its scheduler has it. So quiet counts only after `SETTLE_S`, and only when
it lasts.
"""

from __future__ import annotations

from enum import StrEnum

from hanmaru_contracts.wire.worker import RENEW_INTERVAL_S, Load

SETTLE_S = 2.5 * RENEW_INTERVAL_S
"""From the drain's beginning until no gateway should send any more."""
QUIET_S = 1.5 * RENEW_INTERVAL_S
"""How long the engine must have had nothing to do: more than one snapshot."""


class DrainStep(StrEnum):
    """What to do next."""

    WAIT = "wait"
    DONE = "done"
    """Nothing is left: the engine may end."""
    TIMED_OUT = "timed_out"
    """Requests are left and their time is over."""


class Drain:
    """One drain, from its beginning; times are monotonic seconds."""

    def __init__(self, timeout_s: float, now: float) -> None:
        self._began_at = now
        self._timeout_s = timeout_s
        self._quiet_since: float | None = None

    def step(self, load: Load | None, now: float) -> DrainStep:
        """`load` is the engine's, None when it did not say."""
        is_quiet = load is not None and load.running_requests == load.queued_requests == 0
        if not is_quiet:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        if now - self._began_at >= SETTLE_S and self._quiet_since is not None and now - self._quiet_since >= QUIET_S:
            return DrainStep.DONE
        if now - self._began_at < self._timeout_s:
            return DrainStep.WAIT
        return DrainStep.DONE if is_quiet else DrainStep.TIMED_OUT
