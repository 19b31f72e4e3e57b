"""The only module that speaks to engines: one keep-alive pool, the OpenAI routes, and deadlines on every wait.

`flow` opens one exchange for each try. How an exchange ends is a type: an answer, a stream, `EngineRefusedError`, or
`EngineLostError`; nothing of `connections` leaves this module. Closing an exchange ends its connection unless the
answer was read to its end, and that is how an engine learns to stop: SGLang 0.5.23 aborts a stream's work when its
connection ends, and work that is not streamed within its next poll of the connection. Its `/abort_request` needs the
admin key, which gateways do not have.
"""

from __future__ import annotations

import asyncio

from hanmaru_contracts import keys
from hanmaru_contracts.names import HEADER_TRACEPARENT, ModelId, ReplicaId
from hanmaru_contracts.wire.worker import WorkerRecord

from hanmaru_gateway.dispatch.connections import Connection, ConnectionPool, LostError, UnreachableError
from hanmaru_gateway.dispatch.sse import DamagedStreamError, EventReader
from hanmaru_gateway.request import Kind
from hanmaru_gateway.routing.registry import Seat

ANSWER_MAX_BYTES = 64 * 1024 * 1024
"""Eight choices of long answers with all logprobs stay below."""
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which SGLang's server closes idle connections, so that a reused one is rarely a closed one."""
_END_TIMEOUT_S = 1.0
_HEADS = 1024
"""Remembered beginnings of requests, one a worker and route; workers that left are forgotten with all others."""


class EngineRefusedError(Exception):
    """The engine found fault with the request itself (400, 413, 422)."""


class EngineLostError(Exception):
    """The engine did not answer as an engine should."""

    def __init__(self, reason: str, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        """`unreachable`, `broken` (the connection ended), `stalled`, `status` (it answered an error), `gone`."""
        self.is_busy = is_busy
        """It is healthy and takes no more for now."""


class Exchange:
    """One request at one engine. `answer` or `start` once, then `next_block` until empty; `close` always."""

    __slots__ = ("_connection", "_reader", "_seat", "_stall_timeout_s")

    def __init__(self, connection: Connection, seat: Seat, reader: EventReader, stall_timeout_s: float):
        self._connection = connection
        self._seat = seat
        self._reader = reader
        self._stall_timeout_s = stall_timeout_s

    @property
    def reader(self) -> EventReader:
        """What the stream has said so far."""
        return self._reader

    async def next_block(self) -> bytes:
        """Whole events to pass on; empty at the stream's end. Raises EngineLostError."""
        while not self._reader.has_ended:
            if self._reader.has_failed:
                raise EngineLostError("status")
            data = await self._read()
            if not data:
                raise EngineLostError("broken")
            try:
                block = self._reader.feed(data)
            except DamagedStreamError:
                raise EngineLostError("broken") from None
            if block:
                return block
        if self._reader.has_failed:
            raise EngineLostError("status")
        await self._read_end()
        return b""

    async def _read_end(self) -> None:
        """Wait for the end of the body behind `[DONE]`, without which the connection could not be used again."""
        if not self._connection.is_complete:
            try:
                await self._read(_END_TIMEOUT_S)
            except EngineLostError:
                return

    async def _read(self, timeout_s: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout_s or self._stall_timeout_s) as deadline:
                self._seat.waits(deadline)
                data = await self._connection.read()
        except TimeoutError:
            raise EngineLostError("gone" if self._seat.is_lost else "stalled") from None
        except LostError:
            raise EngineLostError("broken") from None
        finally:
            self._seat.waits_no_more()
        return data

    def close(self) -> None:
        """Give the connection back when everything was read, else end it, which aborts the engine's work."""
        if self._reader.has_ended:
            self._connection.release()
        else:
            self._connection.close()


class EngineClient:
    """All exchanges of one gateway process."""

    def __init__(
        self,
        platform_secret: bytes,
        *,
        connect_timeout_s: float,
        first_token_timeout_s: float,
        stall_timeout_s: float,
        answer_timeout_s: float,
    ) -> None:
        self._pool = ConnectionPool(connect_timeout_s=connect_timeout_s, idle_s=KEEP_ALIVE_S)
        self._secret = platform_secret
        self._first_token_timeout_s = first_token_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._heads: dict[tuple[ModelId, ReplicaId, str, Kind], bytes] = {}

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    async def answer(
        self, worker: WorkerRecord, seat: Seat, kind: Kind, payload: bytes, traceparent: str | None
    ) -> bytes:
        """The whole answer to a request that is not streamed. Raises EngineRefusedError, EngineLostError."""
        try:
            async with asyncio.timeout(self._answer_timeout_s) as deadline:
                seat.waits(deadline)
                connection = await self._post(worker, kind, payload, traceparent)
                try:
                    answer = await _read_whole(connection)
                except BaseException:
                    connection.close()
                    raise
                connection.release()
                return answer
        except TimeoutError:
            raise EngineLostError("gone" if seat.is_lost else "stalled") from None
        except LostError:
            raise EngineLostError("broken") from None
        finally:
            seat.waits_no_more()

    async def stream(
        self,
        worker: WorkerRecord,
        seat: Seat,
        kind: Kind,
        payload: bytes,
        traceparent: str | None,
        *,
        show_usage: bool,
    ) -> tuple[Exchange, bytes]:
        """An exchange whose first events have come, and those events. Raises EngineRefusedError, EngineLostError."""
        reader = EventReader(show_usage=show_usage)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._first_token_timeout_s) as deadline:
                seat.waits(deadline)
                connection = await self._post(worker, kind, payload, traceparent)
                exchange = Exchange(connection, seat, reader, self._first_token_timeout_s)
                first = await exchange.next_block()
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, TimeoutError):
                raise EngineLostError("gone" if seat.is_lost else "stalled") from None
            if isinstance(error, LostError):
                raise EngineLostError("broken") from None
            raise
        finally:
            seat.waits_no_more()
        return Exchange(connection, seat, reader, self._stall_timeout_s), first

    async def _post(self, worker: WorkerRecord, kind: Kind, payload: bytes, traceparent: str | None) -> Connection:
        trace = f"{HEADER_TRACEPARENT}: {traceparent}\r\n".encode() if traceparent is not None else b""
        request = b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head(worker, kind), trace, len(payload), payload)
        try:
            connection = await self._pool.post(worker.address, request)
        except UnreachableError:
            raise EngineLostError("unreachable") from None
        if connection.status == 200:
            return connection
        connection.close()
        if connection.status in (400, 413, 422):
            raise EngineRefusedError
        raise EngineLostError("status", is_busy=connection.status in (429, 503))

    def _head(self, worker: WorkerRecord, kind: Kind) -> bytes:
        """Request line and the headers that are the same each time."""
        place = (worker.model, worker.replica, worker.address, kind)
        head = self._heads.get(place)
        if head is None:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            api_key = keys.engine_api_key(keys.replica_key(self._secret, worker.model, worker.replica))
            head = self._heads[place] = (
                f"POST {kind.value} HTTP/1.1\r\nhost: {worker.address}\r\nauthorization: Bearer {api_key}\r\n"
                "content-type: application/json\r\n"
            ).encode()
        return head


async def _read_whole(connection: Connection) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await connection.read():
        size += len(part)
        if size > ANSWER_MAX_BYTES:
            raise EngineLostError("broken")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
