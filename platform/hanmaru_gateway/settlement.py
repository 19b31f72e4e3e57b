"""Writes what ended requests really used, off their critical path, and never forgets one on a normal path.

`flow` adds, exactly once a request; `run` writes in small groups; `flush` empties the queue before the process ends.
While Redis is away settlements wait, up to `WORTHLESS_AFTER_S`: by then the buckets have refilled themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_gateway.admission.quota import Quota
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.request import Reservation

log = logging.getLogger(__name__)

GROUP = 128
"""Settlements written in one exchange with Redis."""
GATHER_S = 0.02
"""How long the first of a group waits for others. An exchange for each costs a lone client a sixth of its rate."""
RETRY_AFTER_S = 0.5
WORTHLESS_AFTER_S = 120.0
"""Limits hold one minute's worth."""


@dataclass(frozen=True, slots=True)
class _Ended:
    reservation: Reservation
    prompt_tokens: int
    output_tokens: int
    ended_s: float


class Settlements:
    """The queue between ended requests and Redis."""

    def __init__(self, quota: Quota, meters: Meters, now: Callable[[], float]) -> None:
        self._quota = quota
        self._meters = meters
        self._now = now
        self._queue: deque[_Ended] = deque()
        self._writing = 0
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pending(self) -> int:
        """Settlements that are not yet written."""
        return len(self._queue) + self._writing

    def add(self, reservation: Reservation, *, prompt_tokens: int, output_tokens: int) -> None:
        """The request has ended. Never waits and never fails: requests are being torn down when they call it."""
        self._quota.ended(reservation)
        self._queue.append(_Ended(reservation, prompt_tokens, output_tokens, self._now()))
        self._meters.charged(
            reservation.tenant, reservation.model, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._news.wait()
            if len(self._queue) < GROUP:
                await asyncio.sleep(GATHER_S)
            group = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
            if not group:
                self._news.clear()
                self._idle.set()
                continue
            self._writing = len(group)
            try:
                await self._quota.settle_many([(e.reservation, e.prompt_tokens, e.output_tokens) for e in group])
            except HanmaruError:
                self._queue.extendleft(reversed(self._still_worth(group)))
                await asyncio.sleep(RETRY_AFTER_S)
            finally:
                self._writing = 0

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything added is written, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log_event(log, logging.WARNING, "settlements.unwritten", count=self.pending)

    def _still_worth(self, group: list[_Ended]) -> list[_Ended]:
        kept = [ended for ended in group if self._now() - ended.ended_s < WORTHLESS_AFTER_S]
        for _ in range(len(group) - len(kept)):
            self._meters.settlement_lost()
        return kept
