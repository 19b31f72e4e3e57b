"""The REST edge as one raw ASGI application: routes, bodies in, answers, events and errors out.

Served by uvicorn (`http.server`). Everything a request means is `flow`'s; everything it looks like on the wire is here.
No exception leaves: what nobody expected is a 500 whose reason is in the log alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import HEADER_REQUEST_ID

from hanmaru_gateway.flow import Flow
from hanmaru_gateway.http.body import ClientLeftError, Receive, RequestBody
from hanmaru_gateway.http.errors import STATUS, error_body, error_event, retry_after
from hanmaru_gateway.rate_headers import rate_headers
from hanmaru_gateway.request import Call, Complete, Kind, RateState, Stream

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_JSON = (b"content-type", b"application/json")
_CLOSE = (b"connection", b"close")
_EVENTS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_KINDS = {kind.value: kind for kind in Kind}
_METHODS = {
    "/v1/models": "GET",
    "/health": "GET",
    "/ready": "GET",
    **dict.fromkeys(_KINDS, "POST"),
}
_encoder = msgspec.json.Encoder()


class RestEdge:
    """The application. `why_not_ready` returns None when the process can serve, else a word for each thing missing."""

    def __init__(
        self,
        flow: Flow,
        *,
        why_not_ready: Callable[[], list[str]],
        body_bytes: int,
        body_timeout_s: float,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_leaving` says that the listener ends soon: each answer then asks for a connection elsewhere."""
        self._flow = flow
        self._is_leaving = is_leaving
        self._why_not_ready = why_not_ready
        self._body_bytes = body_bytes
        self._body_timeout_s = body_timeout_s
        self._started_s = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        answer = _Response(send, headers.get(HEADER_REQUEST_ID.encode(), b""), self._is_leaving)
        body = RequestBody(receive)
        try:
            try:
                await self._route(scope, headers, body, answer)
            except HanmaruError as error:
                await self._refuse(error, headers, body, answer)
        except ClientLeftError:
            return
        except asyncio.CancelledError:
            # The process ends and has waited long enough; this task ends here, so nobody above waits for the word.
            await answer.error(_shutting_down(), close=True)
        except Exception as error:
            log_event(log, logging.ERROR, "http.failed", path=scope["path"], error=type(error).__name__)
            await answer.error(HanmaruError(ErrorCode.INTERNAL, "the gateway failed"), close=True)

    async def _route(self, scope: Scope, headers: dict[bytes, bytes], body: RequestBody, answer: _Response) -> None:
        path, method = scope["path"], scope["method"]
        expected = _METHODS.get(path)
        if expected is None:
            raise HanmaruError(ErrorCode.NOT_FOUND, f"there is no {_short(path)}")
        if method != expected and not (method == "HEAD" and expected == "GET"):
            raise HanmaruError(ErrorCode.METHOD_NOT_ALLOWED, f"{path} takes {expected}, not {_short(method)}")
        kind = _KINDS.get(path)
        if kind is not None:
            await self._generate(kind, headers, body, answer)
        elif path == "/v1/models":
            await answer.json(200, self._models(_text(headers.get(b"authorization"))))
        elif path == "/health":
            await answer.json(200, b'{"status":"ok"}')
        else:
            missing = self._why_not_ready()
            await answer.json(503 if missing else 200, _encoder.encode({"ready": not missing, "missing": missing}))

    async def _generate(self, kind: Kind, headers: dict[bytes, bytes], body: RequestBody, answer: _Response) -> None:
        authorization = _text(headers.get(b"authorization"))
        self._flow.identify(authorization)  # before the body: nobody unknown makes us hold 16 MiB
        content = await body.read(
            encoding=headers.get(b"content-encoding", b"").strip().lower(),
            declared=_content_length(headers),
            bound=self._body_bytes,
            timeout_s=self._body_timeout_s,
        )
        call = Call(kind, content, authorization, _text(headers.get(b"traceparent")))
        async with _WhileConnected(body) as connection:
            result = await self._flow.run(call)
            if isinstance(result, Complete):
                connection.is_answered = True
                await answer.json(200, result.body, result.rate, ours=result.request)
            else:
                await self._stream(result, answer, connection)
                connection.is_answered = True

    async def _stream(self, stream: Stream, answer: _Response, connection: _WhileConnected) -> None:
        try:
            await answer.start(200, _EVENTS, stream.rate, ours=stream.request)
            async for block in stream.events:
                await answer.more(block)
        except HanmaruError as error:
            await answer.more(error_event(error))
        except asyncio.CancelledError:
            if connection.has_left:
                raise
            await answer.more(error_event(_shutting_down()))
        finally:
            await stream.events.aclose()
        await answer.end()

    def _models(self, authorization: str | None) -> bytes:
        return _encoder.encode(
            {
                "object": "list",
                "data": [
                    {
                        "id": model.route,
                        "object": "model",
                        "created": self._started_s,
                        "owned_by": "hanmaru",
                        "max_model_len": model.context_tokens,
                    }
                    for model in self._flow.models(authorization)
                ],
            }
        )

    async def _refuse(
        self, error: HanmaruError, headers: dict[bytes, bytes], body: RequestBody, answer: _Response
    ) -> None:
        """Tell the error; when the body has not been read, let the client finish sending first, within bounds."""
        if answer.has_started:
            return
        close = False
        if not body.has_ended and _sends_body(headers):
            waits = headers.get(b"expect", b"").lower() == b"100-continue"
            if not waits and error.code is not ErrorCode.REQUEST_TIMEOUT:
                await body.discard()
            close = not body.has_ended
        await answer.error(error, close=close)


class _Response:
    """One answer being written."""

    __slots__ = ("_client_id", "_is_leaving", "_send", "has_started")

    def __init__(self, send: Send, client_id: bytes, is_leaving: Callable[[], bool]) -> None:
        self._send = send
        self._is_leaving = is_leaving
        self._client_id = client_id if _SANE_ID.fullmatch(client_id) else b""
        self.has_started = False

    async def start(self, status: int, headers: Headers, rate: RateState | None = None, ours: str = "") -> None:
        """Status and headers. `ours` is the gateway's id of the request, told when the client brought none."""
        self.has_started = True
        request_id = self._client_id or ours.encode() or b"req-" + secrets.token_hex(16).encode()
        every = [*headers, (HEADER_REQUEST_ID.encode(), request_id), *(_rate_headers(rate) if rate else ())]
        if self._is_leaving() and _CLOSE not in every:
            every.append(_CLOSE)
        await self._send({"type": "http.response.start", "status": status, "headers": every})

    async def more(self, body: bytes) -> None:
        """A part of the body; returns when the connection can take more."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """The body's last part."""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, body: bytes, rate: RateState | None = None, *, ours: str = "") -> None:
        """A whole JSON answer."""
        await self.start(status, [_JSON, (b"content-length", str(len(body)).encode())], rate, ours)
        await self.end(body)

    async def error(self, error: HanmaruError, *, close: bool) -> None:
        """A whole error answer, unless another has begun."""
        if self.has_started:
            return
        body = error_body(error)
        headers: Headers = [_JSON, (b"content-length", str(len(body)).encode())]
        wait = retry_after(error)
        if wait is not None:
            headers.append((b"retry-after", wait))
        if error.code is ErrorCode.INVALID_API_KEY:
            headers.append((b"www-authenticate", b"Bearer"))
        if close:
            headers.append(_CLOSE)
        await self.start(STATUS[error.code], headers)
        await self.end(body)


class _WhileConnected:
    """Cancels what runs inside when the client leaves; the cancellation ends here, as nobody is left to be told."""

    __slots__ = ("_body", "_task", "_watcher", "has_left", "is_answered")

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self.has_left = False
        self.is_answered = False
        """Nothing is left to cancel."""

    async def __aenter__(self) -> _WhileConnected:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher
        if self.has_left and self._task.uncancel() == 0:
            return isinstance(error, asyncio.CancelledError)
        return False

    async def _watch(self) -> None:
        await self._body.client_leaves()
        if not self.is_answered:
            self.has_left = True
            self._task.cancel()


def _rate_headers(rate: RateState) -> Headers:
    return [(name.encode(), value.encode()) for name, value in rate_headers(rate)]


def _shutting_down() -> HanmaruError:
    return HanmaruError(ErrorCode.SHUTTING_DOWN, "the gateway shuts down; try again")


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def _sends_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or (_content_length(headers) or 0) > 0


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value is not None else None


def _short(text: str) -> str:
    return repr(text[:80])
