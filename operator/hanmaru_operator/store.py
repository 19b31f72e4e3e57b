"""The operator's connection to Redis: bounded waiting, and what counts as Redis being away.

Made once by `main`; used by `directory` (what gateways read) and `fleet` (what workers wrote).
"""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

SOCKET_TIMEOUT_S = 1.0
"""For connecting and for each answer."""
CALL_TIMEOUT_S = 2.0
"""For the few answers that one step needs."""

UNREACHABLE = (RedisError, OSError, TimeoutError)
"""A Redis that is gone, hangs, is loading, or refuses us: each is tried again later and means the same meanwhile."""


def connect(url: str, user: str | None, password: str | None) -> Redis:
    """A client that answers bytes; the caller closes it."""
    return Redis.from_url(
        url,
        username=user,
        password=password,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        # Once more, at once, and only for a connection that broke: after a restart of Redis every pooled one is dead.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        client_name="hanmaru-operator",
    )
