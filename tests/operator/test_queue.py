"""The queue as a running thing: workers, errors, waiting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hanmaru_operator.api_errors import TooMany
from hanmaru_operator.queue import WorkQueue
from hanmaru_operator.types import ObjectKey

Reconcile = Callable[[ObjectKey], Awaitable[float | None]]
A, B = ObjectKey("Pool", "", "a"), ObjectKey("Pool", "", "b")


class Record:
    """Counts what ended and how."""

    def __init__(self) -> None:
        self.results: list[str] = []

    def reconciled(self, kind: str, result: str, seconds: float, waited_s: float) -> None:
        assert seconds >= 0
        assert waited_s >= 0
        self.results.append(result)


@contextlib.asynccontextmanager
async def running(
    reconcile: Reconcile, *, workers: int = 4, timeout_s: float = 5
) -> AsyncIterator[tuple[WorkQueue, Record]]:
    record = Record()
    queue = WorkQueue(reconcile, workers=workers, clock=time.monotonic, meter=record, timeout_s=timeout_s)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(queue.run())
        yield queue, record
        queue.stop()


async def test_different_keys_run_side_by_side_and_one_key_never_twice() -> None:
    now: list[str] = []
    both = asyncio.Barrier(2)
    done = asyncio.Event()

    async def reconcile(key: ObjectKey) -> float | None:
        assert key.name not in now
        now.append(key.name)
        await both.wait()
        now.remove(key.name)
        done.set()
        return None

    async with running(reconcile) as (queue, record):
        queue.add(A)
        queue.add(B)
        await done.wait()
    assert record.results == ["ok", "ok"]


async def test_a_key_looks_again_when_it_said() -> None:
    times: list[float] = []
    twice = asyncio.Event()

    async def reconcile(_: ObjectKey) -> float | None:
        times.append(time.monotonic())
        if len(times) == 2:
            twice.set()
            return None
        return 0.2

    async with running(reconcile) as (queue, _):
        queue.add(A)
        await twice.wait()
    assert times[1] - times[0] >= 0.19


async def test_one_keys_bug_is_logged_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    fine = asyncio.Event()

    async def reconcile(key: ObjectKey) -> float | None:
        if key == A:
            raise ZeroDivisionError("ours")
        fine.set()
        return None

    with caplog.at_level(logging.INFO):
        async with running(reconcile) as (queue, record):
            queue.add(A)
            queue.add(B)
            await fine.wait()
    assert "failed" in record.results
    assert "ZeroDivisionError" in caplog.text


async def test_retry_after_is_waited_for() -> None:
    times: list[float] = []
    twice = asyncio.Event()

    async def reconcile(_: ObjectKey) -> float | None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise TooMany("slow down", retry_after_s=1.2)
        twice.set()
        return None

    async with running(reconcile) as (queue, record):
        queue.add(A)
        await twice.wait()
    assert times[1] - times[0] >= 1.19
    assert record.results == ["failed", "ok"]


async def test_a_reconcile_that_hangs_is_cut_off_and_seen() -> None:
    cut = asyncio.Event()

    async def reconcile(_: ObjectKey) -> float | None:
        try:
            await asyncio.Event().wait()
        finally:
            cut.set()
        return None

    async with running(reconcile, timeout_s=0.3) as (queue, record):
        queue.add(A)
        await asyncio.sleep(0.1)
        assert queue.longest_running_s > 0.05
        await cut.wait()
    assert record.results[0] == "failed"


async def test_stopping_lets_what_runs_end_and_takes_no_more() -> None:
    started, release = asyncio.Event(), asyncio.Event()
    ran: list[ObjectKey] = []

    async def reconcile(key: ObjectKey) -> float | None:
        ran.append(key)
        started.set()
        await release.wait()
        return None

    async with running(reconcile, workers=1) as (queue, record):
        queue.add(A)
        queue.add(B)
        await started.wait()
        queue.stop()
        release.set()
    assert ran == [A]
    assert record.results == ["ok"]
