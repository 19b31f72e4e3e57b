"""Whether a running engine hangs, from what it showed and when. Pure: times come in.

Two signs of life. The *heartbeat* is the moment of the scheduler's own latest load snapshot: it moves with each batch,
and every second while idle, so a busy engine is alive however long its queue. The *token* is an answer to SGLang's
generating health check, which any answer on its way to a client satisfies: it also covers the detokenizer and the HTTP
server. A sign missing for `limit_s` means hung. One forward pass longer than `limit_s` therefore counts as a hang.
"""

from __future__ import annotations


class Pulse:
    """The two signs of one engine; times are monotonic seconds."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._heartbeat: float | None = None
        self._heartbeat_at = now
        self._unanswered_since: float | None = None

    def heartbeat(self, stamp: float, now: float) -> None:
        """The scheduler's latest snapshot bears `stamp`, on its own clock: only a change says something."""
        if stamp != self._heartbeat:
            self._heartbeat, self._heartbeat_at = stamp, now

    def asked(self, now: float) -> None:
        """A health check was sent; an earlier one may still wait for its answer."""
        if self._unanswered_since is None:
            self._unanswered_since = now

    def answered(self) -> None:
        """A health check was answered."""
        self._unanswered_since = None

    def restart(self, now: float) -> None:
        """Nobody looked for a while, so silence until now proves nothing."""
        self._heartbeat_at = now
        if self._unanswered_since is not None:
            self._unanswered_since = now

    def complaint(self, now: float) -> str | None:
        """What is missing and since when, or None while the engine lives."""
        if now - self._heartbeat_at > self._limit_s:
            return f"its scheduler has not moved for {now - self._heartbeat_at:.0f} s"
        if self._unanswered_since is not None and now - self._unanswered_since > self._limit_s:
            return f"it was asked for a token {now - self._unanswered_since:.0f} s ago and has produced none"
        return None
