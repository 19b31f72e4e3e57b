"""Being asked to end, and racing that against everything else a worker waits for.

`launch` turns signals into `Stop.ask`; `leader` and `follower` decide what an end means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from hanmaru_contracts.log import log_event

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Stop:
    """How often this worker was asked to end: once means drain, twice means now."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def ask(self) -> None:
        """Called for each SIGTERM and SIGINT."""
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()
        log_event(_log, logging.INFO, "worker.asked_to_stop", at_once=self.hurried.is_set())


async def when(event: asyncio.Event, result: _Result) -> _Result:
    """`result`, once the event has happened."""
    await event.wait()
    return result


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event has happened, or the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def first_of(*coroutines: Coroutine[Any, Any, _Result]) -> _Result:
    """Result or exception of whichever ends first, the earlier argument if several do; the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended.result()
