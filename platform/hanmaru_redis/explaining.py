"""What an error of Redis means, in words for people. Pure.

Whoever tells that Redis does not answer puts this into the event. The library's own texts are left out, because some
quote the command, and commands hold registrations.
"""

from __future__ import annotations

import ssl

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)

from hanmaru_redis.slots import NotACluster, StillMoving

_MEANINGS: tuple[tuple[type[BaseException], str], ...] = (
    (AuthenticationError, "Redis refuses the user or the password"),
    (NoPermissionError, "Redis does not let this user run a command or see a key; give it the rules of docs/redis.md"),
    (AskError, "the server belongs to a Redis Cluster; write redis+cluster:// in the URL"),
    (NotACluster, "the server is no node of a Redis Cluster; write redis:// in the URL"),
    (StillMoving, "a slot of the Redis Cluster is still moving"),
    (ClusterDownError, "the Redis Cluster does not serve all of its slots"),
    (ReadOnlyError, "the server is a replica; name the primary, or the sentinels by redis+sentinel://"),
    (OutOfMemoryError, "Redis has no memory left"),
    (BusyLoadingError, "Redis is loading its data"),
    (MasterNotFoundError, "no sentinel answers with a primary that lives"),
)


def explain(error: BaseException | None) -> str:
    """One short sentence, without commands, keys and secrets."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, HanmaruError) and cause.code is ErrorCode.CONFIGURATION:  # of `tls`
            return cause.message
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"Redis's certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS connection to Redis: {cause.reason}"
    for kind, meaning in _MEANINGS:
        if any(isinstance(cause, kind) for cause in causes):
            return meaning
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, TimeoutError):
            return f"Redis cannot be reached: {cause.strerror}"
    return f"Redis does not answer ({type(error).__name__})"


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found
