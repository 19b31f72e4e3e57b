"""Which loopback ports the parts of one machine get: the wanted one, or the next that is free.

Called by `up` before anything starts. Another program may still take a port between this look and the bind; then the
part that wanted it ends, and its log says so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from hanmaru_contracts.errors import ErrorCode, HanmaruError

LOOPBACK = "127.0.0.1"
SEARCHED_PORTS = 200
"""How far above the wanted port is looked. Enough for many copies on one machine; an endless walk would reach the
ports that the system hands out by itself (32768 and above)."""


def is_free(port: int) -> bool:
    """Whether a listener could bind the port on loopback now."""
    with socket.socket() as probe:
        # As servers do: connections of an ended listener that linger in TIME_WAIT take nothing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(wanted: Mapping[str, int], is_free: Callable[[int], bool]) -> dict[str, int]:
    """Port by name: each the first free one at or above what is wanted, no two the same."""
    chosen: dict[str, int] = {}
    for name, first in wanted.items():
        taken = set(chosen.values())
        last = min(first + SEARCHED_PORTS, 65_536)
        port = next((p for p in range(first, last) if p not in taken and is_free(p)), None)
        if port is None:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"no free port for {name} from {first} to {last - 1}; name another one"
            )
        chosen[name] = port
    return chosen


def moved(wanted: Mapping[str, int], chosen: Mapping[str, int]) -> list[str]:
    """One sentence for each part that did not get the port it wanted."""
    return [
        f"port {wanted[name]} is taken: {name} uses {port}" for name, port in chosen.items() if port != wanted[name]
    ]
