"""Makes clients: `open_redis` for whatever kind of Redis a process was told of.

Called by the programs' composition roots. How long an exchange may take and how often it is tried again is theirs to
say; what the kinds need beyond that is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from hanmaru_redis.address import Host, Kind
from hanmaru_redis.cluster import ClusterRedis
from hanmaru_redis.sentinel import SentinelRedis
from hanmaru_redis.settings import Access, Credentials
from hanmaru_redis.tls import TlsConnection

MAX_CONNECTIONS = 64
"""To one server."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a program waits."""

    connect_s: float
    """For a connection."""
    answer_s: float | None
    """For each answer. None: the caller bounds its exchanges. The library starts a task an exchange otherwise."""
    tries_again: bool = True
    """Once more, at once, and only for a connection that broke: after a restart of Redis every pooled one is dead."""


def open_redis(access: Access, name: str, patience: Patience) -> Redis:
    """A client that answers bytes and connects when it is first asked; the caller closes it. `name` is for Redis's
    list of clients.
    """
    options: dict[str, Any] = {
        "client_name": name,
        # The users' rights do not hold CLIENT SETINFO, and each refusal would stand in Redis's ACL LOG.
        "driver_info": None,
        "socket_connect_timeout": patience.connect_s,
        "socket_timeout": patience.answer_s,
        "max_connections": MAX_CONNECTIONS,
        "retry": Retry(NoBackoff(), int(patience.tries_again), supported_errors=(RedisConnectionError,)),
    }
    if access.tls is not None:
        options["tls"] = access.tls

    def connect(host: Host, who: Credentials, **changes: Any) -> Redis:
        kind = Connection if access.tls is None else TlsConnection
        pool = ConnectionPool(kind, host=host.name, port=host.port, **_login(who), **{**options, **changes})
        return Redis.from_pool(pool)

    address = access.address
    match address.kind:
        case Kind.SINGLE:
            return connect(address.hosts[0], access.credentials, db=address.database)
        case Kind.CLUSTER:
            return ClusterRedis(address.hosts, lambda host: connect(host, access.credentials), patience.connect_s)
        case Kind.SENTINEL:
            asked_s = min(patience.connect_s, 0.5)
            times = {"socket_connect_timeout": asked_s, "socket_timeout": asked_s, "max_connections": 4}
            sentinels = [connect(host, access.sentinel, **times) for host in address.hosts]
            return SentinelRedis(sentinels, address, **_login(access.credentials), **options)


def _login(who: Credentials) -> dict[str, Any]:
    return {"username": who.user, "password": who.password}
