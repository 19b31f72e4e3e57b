"""The operator's connection to Redis: bounded waiting.

Made once by `main`; used by `directory` (what gateways read) and `fleet` (what workers wrote).
"""

from __future__ import annotations

from hanmaru_redis import Redis
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.settings import Access

SOCKET_TIMEOUT_S = 1.0
"""For connecting and for each answer."""
CALL_TIMEOUT_S = 2.0
"""For the few answers that one step needs."""


def connect(access: Access) -> Redis:
    """A client that answers bytes; the caller closes it."""
    return open_redis(access, "hanmaru-operator", Patience(SOCKET_TIMEOUT_S, SOCKET_TIMEOUT_S))
