"""Finds the ranks of a group: waits until each host name leads to a supervisor of that rank, and says where it is.

`supervisor` calls it before it starts the engine, which compares addresses and not names. A name alone proves nothing:
a pod's name may still lead to its predecessor for some seconds, so each address is asked for its `/health`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

import aiohttp
import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
ASK_TIMEOUT_S = 2.0


class _PeerHealth(msgspec.Struct, frozen=True):
    rank: int


_decoder = msgspec.json.Decoder(_PeerHealth)


async def find_peers(peers: Sequence[tuple[str, int]], timeout_s: float) -> tuple[str, ...]:
    """Addresses of the peers, in order of rank; each is given by its host and its supervisor's port.

    Raises HanmaruError (ENGINE_FAILED) when they are not found in time.
    """
    if not peers:
        return ()
    found: dict[int, str] = {}
    try:
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as http:
            while True:
                missing = [rank for rank in range(len(peers)) if rank not in found]
                seen = await asyncio.gather(*(_look(http, rank, *peers[rank]) for rank in missing))
                found |= {rank: address for rank, address in zip(missing, seen, strict=True) if address is not None}
                if len(found) == len(peers):
                    break
                await asyncio.sleep(LOOK_INTERVAL_S)
    except TimeoutError:
        absent = ", ".join(str(rank) for rank in range(len(peers)) if rank not in found)
        message = f"no supervisor of rank {absent} of the group was found within startupTimeoutSeconds={timeout_s:g}"
        raise HanmaruError(ErrorCode.ENGINE_FAILED, message) from None
    log_event(_log, logging.INFO, "group.found", ranks=len(peers))
    return tuple(found[rank] for rank in range(len(peers)))


async def _look(http: aiohttp.ClientSession, rank: int, host: str, port: int) -> str | None:
    """The address at which that rank's supervisor answers, if it does."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for address in dict.fromkeys(str(entry[4][0]) for entry in entries):
        if await _rank_at(http, address, port) == rank:
            return address
    return None


async def _rank_at(http: aiohttp.ClientSession, address: str, port: int) -> int | None:
    host = f"[{address}]" if ":" in address else address
    try:
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        async with http.get(f"http://{host}:{port}/health", timeout=timeout) as answer:
            return _decoder.decode(await answer.read()).rank
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, msgspec.ValidationError):
        return None
