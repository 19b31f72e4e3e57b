"""Registrations of replicas in Redis, signed as their workers would, for tests that have no workers.

Unlike a worker's, one of these need not be renewed: it lives for a minute, or until the test ends it.
"""

from __future__ import annotations

import time

from hanmaru_contracts import keys, redis_keys
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import SIGNATURE_LIFE_MS, Capabilities, Load, WorkerRecord, seal

from hanmaru_testing.redis_server import RedisServer


class Registrations:
    """Of the deployments in one namespace."""

    def __init__(self, server: RedisServer, platform_secret: str, namespace: str) -> None:
        self._redis = server.client()
        self._secret = platform_secret.encode()
        self._namespace = namespace

    def write(self, deployment: str, replica: str, *, running_requests: int = 0) -> None:
        """The replica lives and is so busy."""
        model, me = ModelId(f"{self._namespace}/{deployment}"), ReplicaId(replica)
        record = WorkerRecord(
            model=model,
            replica=me,
            route=deployment,
            pool="any",
            address="127.0.0.1:1",
            artifact="0" * 64,
            capabilities=Capabilities(context_tokens=1024, dtype="bfloat16", page_size=64, sliding_window_tokens=128),
            load=Load(running_requests=running_requests),
            expires_at_ms=time.time_ns() // 1_000_000 + SIGNATURE_LIFE_MS,
        )
        sealed = seal(record, keys.replica_key(self._secret, model, me))
        self._redis.sadd(redis_keys.MODELS, model)
        self._redis.set(redis_keys.worker_lease(model, me), sealed, px=SIGNATURE_LIFE_MS)
        self._redis.zadd(redis_keys.workers(model), {replica: time.time()})

    def expire(self, deployment: str, replica: str) -> None:
        """Its lease has run out: nobody has renewed it."""
        model = ModelId(f"{self._namespace}/{deployment}")
        self._redis.delete(redis_keys.worker_lease(model, ReplicaId(replica)))

    def close(self) -> None:
        """End the connection."""
        self._redis.close()
