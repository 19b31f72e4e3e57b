"""The tier's Redis: pages looked up, read, written, and dropped, each call within a deadline. `client` runs it.

Whatever goes wrong is counted and means that a page is not there; nothing is raised to the caller. A `Breaker` keeps
calls away from a Redis that fails, and the log says why, once for each time that it is lost. What the bytes mean, and
whether they are believed, is `storage`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hanmaru_redis import UNREACHABLE, NoScriptError, Redis, RedisError
from hanmaru_redis.explaining import explain

from hanmaru_worker.plugin.tier import scripts
from hanmaru_worker.plugin.tier.breaker import Breaker
from hanmaru_worker.plugin.tier.events import tell
from hanmaru_worker.plugin.tier.naming import PageName

log = logging.getLogger(__name__)

EXCHANGE_BYTES = 1024 * 1024
"""About so much is sent, or asked for, in one exchange, and one page at least: the deadline cuts between exchanges,
and what a server holds for its clients counts as memory of its own, of which all ranks' reads together must leave some
for what is written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the tier may take of a model's Redis, and of a request's time."""

    shard_bytes: int
    """Most bytes of one shard's pages."""
    life_ms: int
    """Of a page that nobody reads."""
    lookup_s: float = 0.5
    read_s: float = 2.0
    write_s: float = 2.0
    """Deadlines of one call each. How long a request waits is less: SGLang gives up on a read after `wait_s` of the
    spec and goes on without; a write keeps nobody waiting."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One page to write."""

    name: PageName
    frame: bytes


class Store:
    """One process's way to the pages. Belongs to one event loop."""

    def __init__(self, client: Redis, limits: Limits, breaker: Breaker, count_failure: Callable[[str], None]) -> None:
        """`count_failure` is told `timeout`, `unreachable`, `answer` (an error instead of one) or `paused`."""
        self._client = client
        self._limits = limits
        self._breaker = breaker
        self._count_failure = count_failure

    @property
    def is_paused(self) -> bool:
        """Whether a call made now would come back with nothing, unasked. Any thread may ask."""
        return self._breaker.is_paused

    async def look_up(self, entries: Sequence[str], frame_bytes: Sequence[int]) -> list[bool]:
        """Whether something of the right length stands under each key."""
        found = [False] * len(entries)

        async def ask() -> None:
            commands = [("STRLEN", entry) for entry in entries]
            for place, answer in enumerate(await self._exchange(commands)):
                found[place] = answer == frame_bytes[place]

        await self._within(self._limits.lookup_s, ask)
        return found

    async def read(self, entries: Sequence[str], frame_bytes: int) -> list[bytes | None]:
        """What stands under each key, unless it is too short or too long; what came in time."""
        found: list[bytes | None] = [None] * len(entries)

        async def ask() -> None:
            step = max(1, EXCHANGE_BYTES // frame_bytes)
            for first in range(0, len(entries), step):
                # One byte more than there should be shows what is too long, and no more than that is fetched.
                commands = [("GETRANGE", entry, 0, frame_bytes) for entry in entries[first : first + step]]
                for place, answer in enumerate(await self._exchange(commands), start=first):
                    if isinstance(answer, bytes) and len(answer) == frame_bytes:
                        found[place] = answer

        await self._within(self._limits.read_s, ask)
        return found

    async def write(self, pages: Sequence[Frame]) -> list[int | None]:
        """What `scripts.PUT` said of each page; None where it was not asked, or failed."""
        said: list[int | None] = [None] * len(pages)

        async def ask() -> None:
            step = max(1, EXCHANGE_BYTES // max(len(page.frame) for page in pages))
            for first in range(0, len(pages), step):
                some = pages[first : first + step]
                arguments = [(page.frame, self._limits.life_ms, self._limits.shard_bytes) for page in some]
                answers = await self._run(scripts.PUT, [page.name for page in some], arguments)
                for place, answer in enumerate(answers, start=first):
                    said[place] = answer if isinstance(answer, int) else None

        if pages:
            await self._within(self._limits.write_s, ask)
        return said

    async def touch(self, names: Sequence[PageName], frame_bytes: int) -> None:
        """Pages that were used live on."""
        arguments = [(self._limits.life_ms, frame_bytes)] * len(names)
        await self._within(self._limits.read_s, lambda: self._run(scripts.TOUCH, names, arguments))

    async def drop(self, names: Sequence[PageName], frame_bytes: int) -> None:
        """Pages that were refused make room."""
        arguments = [(frame_bytes,)] * len(names)
        await self._within(self._limits.read_s, lambda: self._run(scripts.DROP, names, arguments))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _within(self, deadline_s: float, work: Callable[[], Awaitable[Any]]) -> None:
        if not self._breaker.lets_through():
            self._count_failure("paused")
            return
        try:
            async with asyncio.timeout(deadline_s):
                await work()
        except TimeoutError as error:
            self._failed("timeout", error)
        except UNREACHABLE as error:
            self._failed("unreachable", error)
        except BaseException as error:
            # Cancelled, or a bug of ours: whoever was let through must say how it ended.
            self._failed("unreachable", error)
            raise
        else:
            self._succeeded()

    def _failed(self, reason: str, error: BaseException) -> None:
        was_lost = self._breaker.is_lost
        self._breaker.failed()
        self._count_failure(reason)
        if self._breaker.is_lost and not was_lost:
            tell(log, logging.WARNING, "tier.lost", problem=explain(error))

    def _succeeded(self) -> None:
        if self._breaker.is_lost:
            tell(log, logging.INFO, "tier.back")
        self._breaker.succeeded()

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers, errors among them. Raises where every single one is an error: then Redis is of no use to us."""
        if not commands:
            return []
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if len(errors) == len(answers) and not all(isinstance(error, NoScriptError) for error in errors):
            raise errors[0]
        for error in errors:
            if not isinstance(error, NoScriptError):
                self._count_failure("answer")
        return answers

    async def _run(self, script: str, names: Sequence[PageName], arguments: Sequence[tuple[object, ...]]) -> list[Any]:
        """One run of the script for each page. A server that does not know it yet is sent its text."""
        calls = [(3, name.entry, name.index, name.used, *more) for name, more in zip(names, arguments, strict=True)]
        sha1 = scripts.sha1_of(script)
        answers = await self._exchange([("EVALSHA", sha1, *call) for call in calls])
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        for place, answer in zip(
            unknown, await self._exchange([("EVAL", script, *calls[place]) for place in unknown]), strict=True
        ):
            answers[place] = answer
        return [None if isinstance(answer, RedisError) else answer for answer in answers]
