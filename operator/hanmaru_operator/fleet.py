"""What workers say of themselves in Redis: who lives, how loaded, who drains. Also takes out entries nobody owns.

Reconciles ask for their models' replicas; the resync sweeps. A record counts only when its own replica signed it. A
Redis that does not answer is None here: nobody is taken for dead because nobody could be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from hanmaru_contracts import redis_keys
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import unseal
from hanmaru_redis import UNREACHABLE, Redis

from hanmaru_operator.store import CALL_TIMEOUT_S
from hanmaru_operator.types import LeaseFacts

log = logging.getLogger(__name__)

ASK_AGAIN_MS = 1000
"""After a Redis that did not answer."""
Leases = dict[ModelId, dict[ReplicaId, LeaseFacts]]


class Fleet:
    """Every registration. One a process."""

    def __init__(self, redis: Redis, platform_secret: bytes, *, now_ms: Callable[[], int]) -> None:
        """`now_ms`: Unix milliseconds."""
        self._redis = redis
        self._secret = platform_secret
        self._now_ms = now_ms
        self._silent_until_ms = 0

    async def read(self, models: Iterable[ModelId]) -> Leases | None:
        """The replicas of these models that ever registered; one without a believable lease is not alive.

        Every model asked for is a key of the answer. None: Redis did not answer in time, now or a moment ago: a
        thousand reconciles must not wait for it one after the other.
        """
        now_ms = self._now_ms()
        if now_ms < self._silent_until_ms <= now_ms + ASK_AGAIN_MS:
            return None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await self._read(list(models))
        except UNREACHABLE:
            self._silent_until_ms = self._now_ms() + ASK_AGAIN_MS
            return None

    async def forget(self, model: ModelId, replica: ReplicaId) -> bool:
        """Take out the entries of a replica whose object is gone; False when Redis did not answer."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._forget([(model, replica)])
        except UNREACHABLE:
            return False
        return True

    async def sweep(self, replicas: Mapping[ModelId, Collection[ReplicaId]]) -> int | None:
        """Take out replicas and models that have no object; the number of replicas, None when Redis did not answer.

        `replicas` names every deployment's, draining ones included. One that still renews its lease is left alone: its
        pod runs, and what is registered by nobody ends with its lease.
        """
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                return await self._sweep(replicas)
        except UNREACHABLE:
            return None

    async def _read(self, models: Sequence[ModelId]) -> Leases:
        async with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.zrange(redis_keys.workers(model), 0, -1)
            names = await pipe.execute()
        listed = [(model, ReplicaId(name)) for model, raw in zip(models, names, strict=True) for name in _texts(raw)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for model, replica in listed:
                pipe.get(redis_keys.worker_lease(model, replica))
            sealed = await pipe.execute()
        leases: Leases = {model: {} for model in models}
        for (model, replica), record in zip(listed, sealed, strict=True):
            leases[model][replica] = self._facts(model, replica, record)
        return leases

    def _facts(self, model: ModelId, replica: ReplicaId, sealed: bytes | None) -> LeaseFacts:
        record = unseal(sealed, self._secret, model, replica, self._now_ms()) if sealed is not None else None
        if record is None:
            return LeaseFacts(is_alive=False)
        return LeaseFacts(
            is_alive=True,
            running_requests=record.load.running_requests,
            queued_requests=record.load.queued_requests,
            is_draining=record.draining,
        )

    async def _sweep(self, replicas: Mapping[ModelId, Collection[ReplicaId]]) -> int:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(redis_keys.MODELS)
            [members] = await pipe.execute()
        models = sorted({ModelId(name) for name in _texts(members)} | replicas.keys())
        leases = await self._read(models)
        orphans = [
            (model, replica)
            for model, found in leases.items()
            for replica, facts in found.items()
            if not facts.is_alive and replica not in replicas.get(model, ())
        ]
        await self._forget(orphans)
        gone = [
            model
            for model, found in leases.items()
            if model not in replicas and not any(facts.is_alive for facts in found.values())
        ]
        if gone:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.srem(redis_keys.MODELS, *gone)
                await pipe.execute()
        return len(orphans)

    async def _forget(self, orphans: Sequence[tuple[ModelId, ReplicaId]]) -> None:
        if not orphans:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for model, replica in orphans:
                pipe.delete(redis_keys.worker_lease(model, replica))
                pipe.zrem(redis_keys.workers(model), replica)
            await pipe.execute()
        for model, replica in orphans:
            log_event(log, logging.INFO, "registration.removed", model=model, replica=replica)


def _texts(names: Iterable[bytes]) -> list[str]:
    """Names as text; what is no UTF-8 was written by nobody of ours."""
    texts = []
    for name in names:
        try:
            texts.append(name.decode())
        except UnicodeDecodeError:
            continue
    return texts
