"""Writes what ended requests really used, off their critical path, and never forgets one on a normal path.

`flow` adds, exactly once a request; `run` writes in small groups; `flush` empties the queues before the process ends.
Each node of a cluster has a queue of its own, so that one that is lost or hangs keeps no other tenants' settlements
waiting. While Redis is away they wait, up to `WORTHLESS_AFTER_S`: by then the buckets have refilled themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from hanmaru_contracts.log import log_event

from hanmaru_gateway.admission.quota import Quota
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.request import Reservation

log = logging.getLogger(__name__)

GROUP = 128
"""Settlements written in one exchange with a node."""
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
    """The queues between ended requests and Redis."""

    def __init__(self, quota: Quota, meters: Meters, now: Callable[[], float]) -> None:
        self._quota = quota
        self._meters = meters
        self._now = now
        self._queues: dict[Hashable, deque[_Ended]] = {}
        self._writing: set[Hashable] = set()
        """Shards to which a group is being written, or that rest after one that failed."""
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.pending = 0
        """Settlements that are not yet written."""

    def add(self, reservation: Reservation, *, prompt_tokens: int, output_tokens: int) -> None:
        """The request has ended. Never waits and never fails: requests are being torn down when they call it."""
        self._quota.ended(reservation)
        self._meters.charged(
            reservation.tenant, reservation.model, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )
        if reservation.limits:
            self.pending += 1
            self._idle.clear()
            self._queue(_Ended(reservation, prompt_tokens, output_tokens, self._now()))

    def _queue(self, ended: _Ended) -> None:
        self._queues.setdefault(self._quota.shard(ended.reservation), deque()).append(ended)
        self._news.set()

    async def run(self) -> None:
        """Write for ever."""
        async with asyncio.TaskGroup() as groups:
            while True:
                await self._news.wait()
                self._news.clear()
                for shard in self._queues.keys() - self._writing:
                    self._writing.add(shard)
                    groups.create_task(self._write_group(shard))

    async def _write_group(self, shard: Hashable) -> None:
        """The next group of a shard. Over within seconds, also where redis-py swallows a cancellation (`app._end`)."""
        queue = self._queues[shard]
        if len(queue) < GROUP:
            await asyncio.sleep(GATHER_S)
        group = [queue.popleft() for _ in range(min(GROUP, len(queue)))]
        ends = await self._quota.settle_many([(e.reservation, e.prompt_tokens, e.output_tokens) for e in group])
        failed = [ended for ended, failure in zip(group, ends, strict=True) if failure is not None]
        kept = self._still_worth(failed)
        self.pending -= len(group) - len(kept)
        for ended in kept:
            self._queue(ended)  # at the end, and of the shard that it belongs to by now
        if failed:
            await asyncio.sleep(RETRY_AFTER_S)
        if not queue:
            del self._queues[shard]
        self._writing.remove(shard)
        self._news.set()
        if not self.pending:
            self._idle.set()

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
