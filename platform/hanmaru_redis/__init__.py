"""The way to Redis of all three programs: one server, Sentinel or a cluster, with TLS or without.

`settings` is what a process is told, `opening` makes a client of it. Nobody else opens connections; what the programs
need of the library is named here, so that they do not depend on it by themselves.
"""

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, WatchError

UNREACHABLE = (RedisError, OSError, TimeoutError)
"""A Redis that is gone, hangs, is loading, elects, or refuses us: each is tried again later and means the same
meanwhile."""

__all__ = ["UNREACHABLE", "NoScriptError", "Redis", "RedisError", "WatchError"]
