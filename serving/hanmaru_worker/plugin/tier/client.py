"""An event loop of its own for the tier's Redis, in a thread, so that HiCache's threads can wait for it with a bound.

`storage` calls `Client` from SGLang's prefetch, transfer and backup threads. The loop is the only place that touches
the connections.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.settings import Access

from hanmaru_worker.plugin.tier.breaker import Breaker
from hanmaru_worker.plugin.tier.events import tell
from hanmaru_worker.plugin.tier.store import Limits, Store

log = logging.getLogger(__name__)
_T = TypeVar("_T")

CONNECT_S = 0.5
MARGIN_S = 0.5
"""Beyond a call's own deadline, for a loop that is busy or a process that was stopped."""


class Client:
    """Made once in each rank's process; a thread that is not closed ends with the process."""

    def __init__(self, access: Access | None, limits: Limits, count_failure: Callable[[str], None]) -> None:
        """Connects to nothing yet, so there is nothing to bound; raises what is wrong with an access at once. Without
        one it is as if closed.
        """
        self._limits = limits
        self._count_failure = count_failure
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hanmaru-tier", daemon=True)
        self._thread.start()
        self._store: Store | None = None
        """None: closed."""
        if access is not None:
            self._store = asyncio.run_coroutine_threadsafe(self._open(access), self._loop).result()

    @property
    def is_paused(self) -> bool:
        """Whether a call would be in vain for now, so that what it takes to make one can be saved."""
        store = self._store  # which another thread may close
        return store is None or store.is_paused

    def call(self, work: Callable[[Store], Coroutine[Any, Any, _T]], deadline_s: float, otherwise: _T) -> _T:
        """Its result, or `otherwise` where it does not come in time."""
        store = self._store
        if store is None:
            return otherwise
        return self._wait(work(store), deadline_s + MARGIN_S, otherwise)

    def begin(self, work: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
        """Have it done without waiting."""
        store = self._store
        if store is not None:
            asyncio.run_coroutine_threadsafe(work(store), self._loop)

    def close(self) -> None:
        """Close the connections and end the thread; later calls give `otherwise`."""
        store, self._store = self._store, None
        if store is not None:
            self._wait(_settled(store), CONNECT_S + MARGIN_S, None)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(MARGIN_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _open(self, access: Access) -> Store:
        redis = open_redis(access, "hanmaru-tier", Patience(CONNECT_S, None, tries_again=True))
        return Store(redis, self._limits, Breaker(time.monotonic), self._count_failure)

    def _wait(self, work: Coroutine[Any, Any, _T], patience_s: float, otherwise: _T) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(patience_s)
        except FutureTimeout:
            future.cancel()
            self._count_failure("timeout")
        except Exception as error:  # a request must not fail for its cache
            self._count_failure("unreachable")
            tell(log, logging.ERROR, "tier.failed", error=type(error).__name__)
        return otherwise


async def _settled(store: Store) -> None:
    """What was begun without waiting ends first."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=CONNECT_S)
    await store.close()
