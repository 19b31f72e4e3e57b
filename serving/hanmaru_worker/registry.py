"""The worker's side of the registry in Redis: one signed record under a lease, and the model's artifact.

`supervisor` calls it once a second. One round trip renews everything; what Redis lost (an expired lease, an empty Redis
after a restart) is noticed in that same answer and written again. Nothing is retried here: the caller's
next turn is the retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from hanmaru_contracts import redis_keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.worker import ARTIFACT_LIFE_S, LEASE_MS, SIGNATURE_LIFE_MS, WorkerRecord, seal
from hanmaru_redis import UNREACHABLE, Redis
from hanmaru_redis.explaining import explain
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.settings import Access

REDIS_TIMEOUT_S = 1.0
"""For connecting and for each answer. Two of these and a load report still fit in a lease."""
FORGET_AFTER_S = 3600
"""Members of the worker list that were silent for so long are dropped by whoever renews next."""


@dataclass(frozen=True, slots=True)
class PackedArtifact:
    """A model's artifact as `wire.worker.pack_artifact` made it."""

    digest: str
    packed: bytes


def connect(access: Access) -> Redis:
    """A client that gives up after `REDIS_TIMEOUT_S` and never retries by itself."""
    return open_redis(access, "hanmaru-worker", Patience(REDIS_TIMEOUT_S, REDIS_TIMEOUT_S, tries_again=False))


class Registry:
    """One replica's entries."""

    def __init__(
        self,
        client: Redis,
        replica_key: bytes,
        model: ModelId,
        artifact: PackedArtifact,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._replica_key = replica_key
        self._artifact = artifact
        self._artifact_key = redis_keys.artifact(model, artifact.digest)
        self._wall_clock_s = wall_clock_s
        self._server_ahead_s: float | None = None
        """Redis's clock minus ours: scores are in Redis's seconds, which a pipeline cannot read and use at once."""

    async def renew(self, record: WorkerRecord) -> bool:
        """Write `record` under a fresh lease; True when Redis did not hold one any more (or never did).

        Raises HanmaruError (STORE_UNAVAILABLE) when Redis cannot be reached or refuses.
        """
        try:
            if self._server_ahead_s is None:
                seconds, _ = await self._client.time()
                self._server_ahead_s = seconds - self._wall_clock_s()
                # Gateways read the artifact of every record they see, so it comes first.
                await self._publish_if_missing()
            return await self._renew(record)
        except UNREACHABLE as error:
            self._server_ahead_s = None
            raise _unavailable(error) from error

    async def remove(self, record: WorkerRecord) -> None:
        """Delete the registration. Raises HanmaruError (STORE_UNAVAILABLE); the lease then ends by itself."""
        try:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.delete(redis_keys.worker_lease(record.model, record.replica))
            pipeline.zrem(redis_keys.workers(record.model), record.replica)
            await pipeline.execute()
        except UNREACHABLE as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        """Give the connection back."""
        await self._client.aclose()

    async def _renew(self, record: WorkerRecord) -> bool:
        assert self._server_ahead_s is not None
        now_s = self._wall_clock_s()
        fresh = msgspec.structs.replace(record, expires_at_ms=int(now_s * 1000) + SIGNATURE_LIFE_MS)
        lease = redis_keys.worker_lease(record.model, record.replica)
        listed = redis_keys.workers(record.model)
        server_s = now_s + self._server_ahead_s
        pipeline = self._client.pipeline(transaction=False)
        pipeline.time()
        pipeline.exists(lease)
        pipeline.expire(self._artifact_key, ARTIFACT_LIFE_S)
        pipeline.set(lease, seal(fresh, self._replica_key), px=LEASE_MS)
        pipeline.zadd(listed, {record.replica: server_s})
        pipeline.zremrangebyscore(listed, "-inf", server_s - FORGET_AFTER_S)
        pipeline.sadd(redis_keys.MODELS, record.model)
        (seconds, _), had_lease, has_artifact, *_ = await pipeline.execute()
        self._server_ahead_s = seconds - now_s
        if not has_artifact:
            await self._publish()
        return not had_lease

    async def _publish_if_missing(self) -> None:
        if not await self._client.expire(self._artifact_key, ARTIFACT_LIFE_S):
            await self._publish()

    async def _publish(self) -> None:
        await self._client.set(self._artifact_key, self._artifact.packed, ex=ARTIFACT_LIFE_S)


def _unavailable(error: BaseException) -> HanmaruError:
    return HanmaruError(ErrorCode.STORE_UNAVAILABLE, explain(error))
