"""How a gateway's pod ends its replica without Ray: a Unix socket in the pod, and a connection that lasts until then.

The replica listens (`deployment`); the pod's first process connects when it gets SIGTERM (`node`) and waits for the
connection's end. No word is spoken, and Ray's control process, which may be gone, is not needed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

ENV_LEAVE_SOCKET = "HANMARU_GATEWAY_LEAVE_SOCKET"
"""Path of the socket; the pod's first process sets it for the replica."""


@asynccontextmanager
async def leave_when_asked(path: Path, leave: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """While the block runs, whoever connects to `path` starts `leave`, and is hung up on when it has returned."""

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await leave()
        finally:
            writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240  a pod's own memory
    server = await asyncio.start_unix_server(asked, path)
    try:
        yield
    finally:
        server.close()


def ask_to_leave(path: Path, timeout_s: float) -> bool:
    """Ask, and wait until the replica has left. False: nobody listens there, or it took longer than that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        try:
            asking.connect(str(path))
            asking.recv(1)
        except OSError:
            return False
    return True
