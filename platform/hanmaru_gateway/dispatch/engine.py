"""The only module that speaks to engines: one keep-alive pool, the OpenAI routes, and deadlines on every wait.

`flow` opens one exchange for each try. How an exchange ends is a type: an answer, a stream, `EngineRefusedError`, or
`EngineLostError`; nothing of aiohttp leaves this module. Closing an exchange ends its connection unless the answer was
read to its end, and that is how an engine learns to stop: SGLang 0.5.23 aborts a stream's work when its connection
ends, and work that is not streamed within its next poll of the connection. Its `/abort_request` needs the admin key,
which gateways do not have.
"""

from __future__ import annotations

import asyncio
import io
from typing import Self

import aiohttp
from hanmaru_contracts import keys
from hanmaru_contracts.names import HEADER_TRACEPARENT, ModelId, ReplicaId
from hanmaru_contracts.wire.worker import WorkerRecord

from hanmaru_gateway.dispatch.sse import DamagedStreamError, EventReader
from hanmaru_gateway.request import Kind
from hanmaru_gateway.routing.registry import Seat

ANSWER_MAX_BYTES = 64 * 1024 * 1024
"""Eight choices of long answers with all logprobs stay below."""
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which SGLang's server closes idle connections, so that a reused one is rarely a closed one."""
_END_TIMEOUT_S = 1.0
_DIRECT_BODY_BYTES = 256 * 1024
"""Larger bodies are written piece by piece, as the connection takes them."""


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

    __slots__ = ("_reader", "_response", "_seat", "_stall_timeout_s")

    def __init__(self, response: aiohttp.ClientResponse, seat: Seat, reader: EventReader, stall_timeout_s: float):
        self._response = response
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
        if not self._response.content.at_eof():
            try:
                await self._read(_END_TIMEOUT_S)
            except EngineLostError:
                return

    async def _read(self, timeout_s: float | None = None) -> bytes:
        content = self._response.content
        try:
            async with asyncio.timeout(timeout_s or self._stall_timeout_s) as deadline:
                self._seat.waits(deadline)
                data = await content.readany()
        except TimeoutError:
            raise EngineLostError("gone" if self._seat.is_lost else "stalled") from None
        except (aiohttp.ClientError, OSError):
            raise EngineLostError("broken") from None
        finally:
            self._seat.waits_no_more()
        return data

    def close(self) -> None:
        """Give the connection back when everything was read, else end it, which aborts the engine's work."""
        if self._reader.has_ended:
            self._response.release()  # aiohttp closes it all the same when the body has not ended
        else:
            self._response.close()


class EngineClient:
    """All exchanges of one gateway process."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        platform_secret: bytes,
        *,
        first_token_timeout_s: float,
        stall_timeout_s: float,
        answer_timeout_s: float,
    ) -> None:
        self._session = session
        self._secret = platform_secret
        self._first_token_timeout_s = first_token_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._headers: dict[tuple[ModelId, ReplicaId], dict[str, str]] = {}

    @classmethod
    def open(
        cls,
        platform_secret: bytes,
        *,
        connect_timeout_s: float,
        first_token_timeout_s: float,
        stall_timeout_s: float,
        answer_timeout_s: float,
    ) -> Self:
        """A client with a pool of its own; call inside the event loop."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )
        return cls(
            session,
            platform_secret,
            first_token_timeout_s=first_token_timeout_s,
            stall_timeout_s=stall_timeout_s,
            answer_timeout_s=answer_timeout_s,
        )

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()

    async def answer(
        self, worker: WorkerRecord, seat: Seat, kind: Kind, payload: bytes, traceparent: str | None
    ) -> bytes:
        """The whole answer to a request that is not streamed. Raises EngineRefusedError, EngineLostError."""
        try:
            async with asyncio.timeout(self._answer_timeout_s) as deadline:
                seat.waits(deadline)
                response = await self._post(worker, kind, payload, traceparent)
                try:
                    return await _read_bounded(response)
                finally:
                    # A whole answer has given its connection back already; then this does nothing.
                    response.close()
        except TimeoutError:
            raise EngineLostError("gone" if seat.is_lost else "stalled") from None
        except (aiohttp.ClientError, OSError):
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
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(self._first_token_timeout_s) as deadline:
                seat.waits(deadline)
                response = await self._post(worker, kind, payload, traceparent)
                exchange = Exchange(response, seat, reader, self._first_token_timeout_s)
                first = await exchange.next_block()
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError):
                raise EngineLostError("gone" if seat.is_lost else "stalled") from None
            if isinstance(error, aiohttp.ClientError | OSError):
                raise EngineLostError("broken") from None
            raise
        finally:
            seat.waits_no_more()
        return Exchange(response, seat, reader, self._stall_timeout_s), first

    async def _post(
        self, worker: WorkerRecord, kind: Kind, payload: bytes, traceparent: str | None
    ) -> aiohttp.ClientResponse:
        headers = self._headers_for(worker)
        if traceparent is not None:
            headers = {**headers, HEADER_TRACEPARENT: traceparent}
        try:
            response = await self._session.post(
                f"http://{worker.address}{kind.value}",
                data=payload if len(payload) <= _DIRECT_BODY_BYTES else io.BytesIO(payload),
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
            raise EngineLostError("unreachable") from None
        if response.status == 200:
            return response
        response.close()
        if response.status in (400, 413, 422):
            raise EngineRefusedError
        raise EngineLostError("status", is_busy=response.status in (429, 503))

    def _headers_for(self, worker: WorkerRecord) -> dict[str, str]:
        place = (worker.model, worker.replica)
        headers = self._headers.get(place)
        if headers is None:
            api_key = keys.engine_api_key(keys.replica_key(self._secret, *place))
            headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
            self._headers[place] = headers
        return headers


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    if response.content_length is not None and response.content_length <= ANSWER_MAX_BYTES:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_MAX_BYTES:
            raise EngineLostError("broken")
        parts.append(part)
    return b"".join(parts)
