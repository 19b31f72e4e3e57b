"""Ports for servers that are stopped and started again on the same port."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_000


def free_port() -> int:
    """A free TCP port on loopback, from below those that the kernel gives to outgoing connections.

    While such a server is down, its clients try its port again and again. Were it one the kernel gives out, a client
    would sooner or later be given that very port, connect to itself and keep the server from coming back.
    """
    first_outgoing, last_outgoing = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = range(_LOWEST, first_outgoing) or range(last_outgoing + 1, 1 << 16)
    while True:
        port = random.choice(ports)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
