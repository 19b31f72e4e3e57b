"""Hands connections from a loopback port of the machine to the API server inside: `python -m hanmaru_cluster.relay …`.

It listens first and enters the cluster's network namespace then: a listener stays in the namespace that it was made in,
and new connections are made in the one that the process is in. So no address of the cluster is known outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Sequence

_CLONE_NEWNET = 0x40000000
_CHUNK_BYTES = 1 << 16


def argv(port: int, namespace: str, address: str, target_port: int) -> Sequence[str]:
    """Starts it, for a process inside the cluster's mount namespace."""
    module = [sys.executable, "-m", "hanmaru_cluster.relay"]
    return [*module, str(port), f"/run/netns/{namespace}", address, str(target_port)]


def main(port: int, namespace: str, address: str, target_port: int) -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    entered = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(entered, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns", namespace)
    asyncio.run(_serve(listener, address, target_port))


async def _serve(listener: socket.socket, address: str, port: int) -> None:
    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # either side may go at any time; the other is told by the end of its stream
            there, here = await asyncio.open_connection(address, port)
            try:
                await asyncio.gather(_copy(reader, here), _copy(there, writer))
            finally:
                here.close()
        writer.close()

    async with await asyncio.start_server(hand_on, sock=listener) as server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
