"""Reconciles keys, several at a time, one at a time for each: `work` with a clock, tasks and measurements.

`main` runs it while we lead; the watch, the resync and reconciles add keys. What a reconcile raises is logged and
retried here, so that one object's trouble is its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_operator.api_errors import Conflict, NotLeader
from hanmaru_operator.types import ObjectKey
from hanmaru_operator.work import Turn, Work

_log = logging.getLogger(__name__)

RECONCILE_TIMEOUT_S = 120.0
"""One that takes longer is cancelled and counts as failed; a dozen requests at their deadlines fit."""


class Meter(Protocol):
    """Who measures the queue."""

    def reconciled(self, kind: str, result: str, seconds: float, waited_s: float) -> None:
        """One ended: `ok`, `failed` or `cancelled`."""


class WorkQueue:
    """Calls `reconcile` for every key that is asked for; it gives the seconds until its next look, or None."""

    def __init__(
        self,
        reconcile: Callable[[ObjectKey], Awaitable[float | None]],
        *,
        workers: int,
        clock: Callable[[], float],
        meter: Meter,
        timeout_s: float = RECONCILE_TIMEOUT_S,
    ) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._clock = clock
        self._meter = meter
        self._timeout_s = timeout_s
        self._work = Work()
        self._wake = asyncio.Event()
        self._stopping = False
        self._started: dict[ObjectKey, float] = {}

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return self._work.depth

    @property
    def longest_running_s(self) -> float:
        """For how long the oldest of the running reconciles runs."""
        return self._clock() - min(self._started.values(), default=self._clock())

    def add(self, key: ObjectKey, *, is_direct: bool = True) -> None:
        """Something about the object changed (`is_direct`), or it is its turn to be looked at."""
        self._work.add(key, self._clock(), is_direct=is_direct)
        self._wake.set()

    def stop(self) -> None:
        """Take no more; `run` returns when what runs has ended."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        free = asyncio.Semaphore(self._workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                turn = await self._next()
                if turn is None:
                    return
                task = group.create_task(self._work_on(turn), name=f"reconcile {turn.key}")
                task.add_done_callback(lambda _: free.release())

    async def _next(self) -> Turn | None:
        while not self._stopping:
            now = self._clock()
            turn = self._work.take(now)
            if turn is not None:
                return turn
            due = self._work.next_due()
            self._wake.clear()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self._wake.wait()
            except TimeoutError:
                continue
        return None

    async def _work_on(self, turn: Turn) -> None:
        key, begun_s = turn.key, self._clock()
        self._started[key] = begun_s
        result = "cancelled"
        try:
            async with asyncio.timeout(self._timeout_s):
                look_again_s = await self._reconcile(key)
            result = "ok"
            self._work.done(key, self._clock(), look_again_s)
        except Exception as error:  # one object's trouble, our own bug included, must not end the others' work
            result = "failed"
            retry_after_s = error.retry_after_s if isinstance(error, HanmaruError) else None
            self._work.failed(key, self._clock(), retry_after_s=retry_after_s)
            _say(turn, error)
        finally:
            del self._started[key]
            self._meter.reconciled(key.kind, result, self._clock() - begun_s, turn.waited_s)
            self._wake.set()


def _say(turn: Turn, error: Exception) -> None:
    """A conflict is only news that came late; what is not one of our errors is a bug, and shows where."""
    is_ours = isinstance(error, HanmaruError | TimeoutError)
    level = logging.INFO if isinstance(error, Conflict | NotLeader) else logging.WARNING if is_ours else logging.ERROR
    key = turn.key
    log_event(
        _log,
        level,
        "reconcile.failed",
        kind=key.kind,
        namespace=key.namespace,
        name=key.name,
        failures=turn.retries + 1,
        error=type(error).__name__,
        message=str(error),
    )
    if not is_ours:
        _log.error("the bug behind it", exc_info=error)
