"""The REST listener: uvicorn with bounds it does not have by itself, and a socket several replicas can share.

uvicorn waits for ever for a request's head and for a reader of its answers, and keeps heads of any length; here each
connection has a deadline for the one, a bound for the other. Made by `app`; runs in the loop it is started in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hanmaru_gateway.http.errors import error_body
from hanmaru_gateway.settings import Settings

HEAD_MAX_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `header_timeout_s` and `write_timeout_s` are set by `bounded`."""

    header_timeout_s: float
    write_timeout_s: float
    _head_deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """Another head is due."""
        super().on_message_begin()
        if self._head_deadline is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._end_head_wait()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what comes until the head is complete."""
        super().data_received(data)
        if self._head_deadline is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self.send_400_response(f"the request's head is longer than {HEAD_MAX_BYTES} bytes")

    def pause_writing(self) -> None:
        """The client does not read; it has some time to."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It read."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        super().connection_lost(exc)
        self._end_head_wait()

    def send_400_response(self, msg: str) -> None:
        """As every other error: an OpenAI body."""
        body = error_body(HanmaruError(ErrorCode.INVALID_REQUEST, msg))
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self._end_head_wait()
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_deadline = self.loop.call_later(self.header_timeout_s, self._head_is_late)

    def _end_head_wait(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_is_late(self) -> None:
        self._head_deadline = None
        self.transport.close()


def bounded(header_timeout_s: float, write_timeout_s: float) -> type[BoundedProtocol]:
    """The protocol with its deadlines; uvicorn makes the instances and hands them no settings of ours."""
    return type(
        "BoundedProtocolWithDeadlines",
        (BoundedProtocol,),
        {"header_timeout_s": header_timeout_s, "write_timeout_s": write_timeout_s},
    )


class HttpServer:
    """One listener. `start` returns when it listens; `stop` when nothing is left of it."""

    def __init__(self, app: Any, settings: Settings, port: int) -> None:
        # A parse error is the client's, not an event of ours; uvicorn logs each as a warning.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._address = (settings.host, port)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=bounded(settings.header_timeout_s, settings.write_timeout_s),
                loop="none",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
                ssl_certfile=settings.tls_cert_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises HanmaruError (CONFIGURATION) when the port is taken or the certificate is none."""
        host, port = self._address
        listener: socket.socket | None = None
        try:
            listener = reusable_socket(host, port)
            self.port = listener.getsockname()[1]
            self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
            while not self._server.started and not self._serving.done():  # noqa: ASYNC110  uvicorn has no event
                await asyncio.sleep(0.01)
            if self._serving.done():
                self._serving.result()
        except OSError as error:  # ssl.SSLError is one
            if listener is not None:
                listener.close()
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"HTTP cannot listen on {host}:{port}: {error.strerror or error}"
            ) from error

    @property
    def is_serving(self) -> bool:
        """False once the listener has ended, whyever."""
        return self._serving is not None and not self._serving.done()

    async def stop(self) -> None:
        """Accept nothing new, let running answers end within the bound, then end."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: whoever owns the process handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


def reusable_socket(host: str, port: int) -> socket.socket:
    """A bound socket that a replica replacing this one can bind as well (SO_REUSEPORT), so that none is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
