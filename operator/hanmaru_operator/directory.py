"""Keeps what gateways read from Redis equal to the plan: tenants, and the owners of route names.

`want` is told the whole plan, once every object it is made of has been read; `run` is a loop for the process's
TaskGroup. A step writes by difference, in one transaction a table, and nothing where Redis holds what it should: it
compares a version every second, and every entry when that is another than ours, on start and at each resync. Redis
being away is waited out, and what it lost is written again when it is back. Nothing here has a lease: while no operator
runs, tenants stay as they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import cast

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.redis_keys import ROUTES
from hanmaru_contracts.wire.directory import Routes, Table, read_routes
from hanmaru_redis import UNREACHABLE, Redis, WatchError
from hanmaru_redis.explaining import explain

from hanmaru_operator.store import CALL_TIMEOUT_S

POLL_S = 1.0
RESYNC_S = 300.0
"""How often every entry is compared, though the version is ours: an entry may have come beside it."""
_FIRST_RETRY_S = 0.25
_LAST_RETRY_S = 2.0
_ATTEMPTS = 3
"""Of one write, when somebody else writes at the same moment."""

log = logging.getLogger(__name__)


class Directory:
    """The operator's side of the tables. One a process, of the leader alone."""

    def __init__(
        self,
        redis: Redis,
        *,
        on_reachability: Callable[[bool], None],
        now: Callable[[], float],
        poll_s: float = POLL_S,
        resync_s: float = RESYNC_S,
    ) -> None:
        """`on_reachability` hears when Redis goes and when it is back; statuses say so. `now` is monotonic."""
        self._redis = redis
        self._on_reachability = on_reachability
        self._now = now
        self._poll_s = poll_s
        self._resync_s = resync_s
        self._keepers: tuple[_Keeper, ...] = ()
        self._news = asyncio.Event()
        self._compared_s = now()
        self._retry_s = _FIRST_RETRY_S
        self.is_reachable = True
        """Whether Redis answered when it was last asked."""

    async def held_routes(self) -> Routes:
        """The routes in Redis, for who owned them before this process began. Raises STORE_UNAVAILABLE."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                held = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(ROUTES))
        except UNREACHABLE as error:
            raise HanmaruError(ErrorCode.STORE_UNAVAILABLE, explain(error)) from error
        return read_routes(held)[0]

    def want(self, *, routes: Table, tenants: Table) -> None:
        """From now on Redis is to hold these. Before the first call nothing is written."""
        if not self._keepers:
            # Routes first: a gateway that knows its tenants must know who owns the names they ask for.
            self._keepers = (_Keeper(self._redis, routes), _Keeper(self._redis, tenants))
        for keeper, table in zip(self._keepers, (routes, tenants), strict=True):
            keeper.wanted = table
        if not all(keeper.is_written for keeper in self._keepers):
            self._news.set()

    def resync(self) -> None:
        """Compare every entry with the next step."""
        for keeper in self._keepers:
            keeper.is_written = False
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        me = asyncio.current_task()
        assert me is not None
        while True:
            await self.step()
            if me.cancelling():  # Python 3.11's wait_for, which redis-py writes with, can swallow it
                raise asyncio.CancelledError
            if self.is_reachable:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._news.wait()
            else:
                await asyncio.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def step(self) -> None:
        """Look at Redis once and mend what differs; a Redis that does not answer is remembered, not raised."""
        self._news.clear()
        if self._now() - self._compared_s >= self._resync_s:
            self._compared_s = self._now()
            for keeper in self._keepers:
                keeper.is_written = False
        try:
            for keeper in self._keepers:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await keeper.keep()
        except UNREACHABLE as error:
            self._reached(False, explain(error))
        else:
            self._retry_s = _FIRST_RETRY_S
            self._reached(True)

    def _reached(self, is_reachable: bool, problem: str | None = None) -> None:
        if is_reachable == self.is_reachable:
            return
        self.is_reachable = is_reachable
        if is_reachable:
            log_event(log, logging.INFO, "directory.store_back")
        else:
            log_event(log, logging.WARNING, "directory.store_unreachable", problem=problem)
        self._on_reachability(is_reachable)


class _Keeper:
    """One table and what is known of it in Redis."""

    def __init__(self, redis: Redis, wanted: Table) -> None:
        self._redis = redis
        self._wanted = wanted
        self._version: bytes | None = None
        self.is_written = False
        """Whether Redis held all of it, and nothing else, when the entries were last looked at."""

    @property
    def wanted(self) -> Table:
        """What Redis is to hold."""
        return self._wanted

    @wanted.setter
    def wanted(self, table: Table) -> None:
        if table.digest != self._wanted.digest:
            self._wanted = table
            self.is_written = False

    async def keep(self) -> None:
        """Ask for the version; compare and write where it is not ours."""
        if self.is_written and await self._is_whole():
            return
        for _ in range(_ATTEMPTS):
            try:
                await self._mend()
            except WatchError:
                continue
            return

    async def _is_whole(self) -> bool:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._wanted.version_key)
            pipe.exists(self._wanted.key)
            version, exists = await pipe.execute()
        return version == self._version and (bool(exists) or not self._wanted.entries)

    async def _mend(self) -> None:
        """Make Redis hold the table. Raises WatchError when somebody wrote meanwhile; then nothing was changed."""
        table = self._wanted
        entries = {name.encode(): value.encode() for name, value in table.entries.items()}
        async with self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(table.key, table.version_key)
            version = cast("bytes | None", await pipe.get(table.version_key))
            held = cast("dict[bytes, bytes]", await pipe.hgetall(table.key))
            stray = [name for name in held if name not in entries]
            missing = {name: value for name, value in entries.items() if held.get(name) != value}
            if stray or missing or not table.is_version(version):
                version = _version(table, version)
                pipe.multi()  # type: ignore[no-untyped-call]
                if stray:
                    pipe.hdel(table.key, *stray)
                if missing:
                    pipe.hset(table.key, items=[part for entry in missing.items() for part in entry])
                pipe.set(table.version_key, version)
                await pipe.execute()
                log_event(
                    log,
                    logging.INFO,
                    "directory.written",
                    table=table.key,
                    entries=len(entries),
                    written=len(missing),
                    removed=len(stray),
                )
        self._version = version
        self.is_written = table is self._wanted


def _version(table: Table, held: bytes | None) -> bytes:
    """A version other than the one Redis holds, so that gateways which read what stood beside it read again."""
    if table.is_version(held):
        return f"{table.digest}.{secrets.token_hex(4)}".encode()
    return table.digest.encode()
