"""How ranks above 0 follow rank 0: they ask its supervisor's `/health` and end when it is gone.

`supervisor` runs it for those ranks. Rank 0's supervisor answers at the host of the group's rendezvous address and the
spec's supervisor port. A rank whose engine breaks ends the group by itself: rank 0's engine then fails or hangs.
"""

from __future__ import annotations

import msgspec

from hanmaru_worker.health import Phase

LEADER_GONE_S = 10.0
"""How long rank 0 may be silent."""
ASK_INTERVAL_S = 1.0
ASK_TIMEOUT_S = 2.0


class LeaderHealth(msgspec.Struct, frozen=True):
    """Rank 0's answer."""

    phase: Phase
    instance: str


_decoder = msgspec.json.Decoder(LeaderHealth)


def read_leader(body: bytes) -> LeaderHealth | None:
    """None when that is not a supervisor's answer."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


class LeaderWatch:
    """What was seen of rank 0; times are monotonic seconds. Pure."""

    def __init__(self, first_sight_s: float, now: float) -> None:
        self._first_sight_s = first_sight_s
        self._instance: str | None = None
        self._seen_at = now
        self._has_ended = False

    def saw(self, leader: LeaderHealth, now: float) -> None:
        """Rank 0 answered."""
        if self._instance is None:
            self._instance = leader.instance
        self._has_ended |= leader.instance != self._instance or leader.phase is Phase.STOPPING
        self._seen_at = now

    def restart(self, now: float) -> None:
        """Nobody looked for a while, so silence until now proves nothing."""
        self._seen_at = now

    def is_silent(self, now: float) -> bool:
        """Whether it missed its last answers."""
        return now - self._seen_at > ASK_INTERVAL_S + ASK_TIMEOUT_S

    def complaint(self, now: float) -> str | None:
        """Why this rank has to end, or None."""
        silent_s = now - self._seen_at
        if self._has_ended:
            return "rank 0 of the group has ended or started anew"
        if self._instance is None:
            return "rank 0 of the group never answered" if silent_s > self._first_sight_s else None
        return f"rank 0 of the group has been gone for {silent_s:.0f} s" if silent_s > LEADER_GONE_S else None
