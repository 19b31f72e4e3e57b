"""Reads a request's body within its bound and its time, unpacking it on the way. Called by `asgi`.

The bound counts unpacked bytes, and unpacking stops where the bound does, so that a small body cannot become a large
one. What the bodies say is nobody's business here.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_STEP_BYTES = 256 * 1024
"""Unpacked at once, about a millisecond; then others get their turn."""
_EITHER_HEADER = 32 + zlib.MAX_WBITS
"""zlib finds out whether it is gzip or deflate."""
_ENCODINGS = (b"gzip", b"x-gzip", b"deflate")
DISCARDED_BYTES = 32 * 1024 * 1024
DISCARDED_S = 3.0


class ClientLeftError(Exception):
    """The connection ended before the body had."""


class RequestBody:
    """The body of one request, to be read once or thrown away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.has_ended = False
        """All of it has come."""

    async def read(self, *, encoding: bytes, declared: int | None, bound: int, timeout_s: float) -> bytes:
        """The whole body, unpacked; `encoding` is the Content-Encoding, `declared` the Content-Length.

        Raises HanmaruError (BODY_TOO_LARGE, REQUEST_TIMEOUT, INVALID_REQUEST) and ClientLeftError.
        """
        if encoding not in (b"", b"identity", *_ENCODINGS):
            raise HanmaruError(
                ErrorCode.INVALID_REQUEST, "the body's content-encoding is not known; send gzip, deflate or none"
            )
        if declared is not None and declared > bound:
            raise _too_large(bound)
        unpacker = _Unpacker(bound) if encoding in _ENCODINGS else None
        whole = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while not self.has_ended:
                    part = await self._next()
                    if unpacker is not None:
                        await unpacker.feed(part)
                        continue
                    if len(whole) + len(part) > bound:
                        raise _too_large(bound)
                    if self.has_ended and not whole:
                        return part  # it came in one piece, as most do
                    whole += part
        except TimeoutError:
            raise HanmaruError(ErrorCode.REQUEST_TIMEOUT, f"the body did not arrive within {timeout_s:g} s") from None
        if unpacker is not None:
            return unpacker.result()
        return bytes(whole)

    async def discard(self) -> None:
        """Let the client finish sending, within bounds, so that it gets to read its answer. Raises ClientLeftError."""
        size = 0
        try:
            async with asyncio.timeout(DISCARDED_S):
                while not self.has_ended and size <= DISCARDED_BYTES:
                    size += len(await self._next())
        except TimeoutError:
            return

    async def client_leaves(self) -> None:
        """Return when the connection has ended; call it once the body has."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self.has_ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


class _Unpacker:
    """Unpacks one body step by step."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._zlib = zlib.decompressobj(_EITHER_HEADER)
        self._whole = bytearray()

    async def feed(self, data: bytes) -> None:
        while data and not self._zlib.eof:
            try:
                part = self._zlib.decompress(data, _STEP_BYTES)
            except zlib.error:
                raise _damaged() from None
            data = self._zlib.unconsumed_tail
            self._whole += part
            if len(self._whole) > self._bound:
                raise _too_large(self._bound)
            if data:
                await asyncio.sleep(0)

    def result(self) -> bytes:
        if not self._zlib.eof:
            raise _damaged()
        return bytes(self._whole)


def _too_large(bound: int) -> HanmaruError:
    return HanmaruError(ErrorCode.BODY_TOO_LARGE, f"the body is larger than {bound} bytes (counted unpacked)")


def _damaged() -> HanmaruError:
    return HanmaruError(ErrorCode.INVALID_REQUEST, "the body is not what its content-encoding says")
