"""Workers as Redis shows them: signed registrations under a lease, and an artifact small enough for any test.

The artifact's tokenizer makes one token a byte, so that a test can count; its template is the plainest there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from hanmaru_contracts import keys, redis_keys
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import (
    ARTIFACT_LIFE_S,
    LEASE_MS,
    RENEW_INTERVAL_S,
    SIGNATURE_LIFE_MS,
    Capabilities,
    Load,
    ModelArtifact,
    WorkerRecord,
    pack_artifact,
    seal,
)
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}[quiet]{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_artifact(template: str = TEMPLATE) -> ModelArtifact:
    """A tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return ModelArtifact(tokenizer=tokenizer.to_str().encode(), chat_template=template)


@dataclass
class RegisteredWorker:
    """A registration; change `record` and `write` it again."""

    redis: Redis
    secret: bytes
    record: WorkerRecord
    artifact: bytes
    renewals: int = field(default=0)

    @property
    def api_key(self) -> str:
        """What its engine demands."""
        return keys.engine_api_key(keys.replica_key(self.secret, self.record.model, self.record.replica))

    async def write(self, *, signed_with: bytes | None = None) -> None:
        """Register or renew, as a supervisor does; `signed_with` is another replica's key, for a forgery."""
        key = signed_with or keys.replica_key(self.secret, self.record.model, self.record.replica)
        record = msgspec.structs.replace(self.record, expires_at_ms=time.time_ns() // 1_000_000 + SIGNATURE_LIFE_MS)
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.sadd(redis_keys.MODELS, record.model)
            pipe.set(redis_keys.artifact(record.model, record.artifact), self.artifact, ex=ARTIFACT_LIFE_S)
            pipe.set(redis_keys.worker_lease(record.model, record.replica), seal(record, key), px=LEASE_MS)
            pipe.zadd(redis_keys.workers(record.model), {record.replica: time.time()})
            await pipe.execute()
        self.renewals += 1

    async def remove(self) -> None:
        """Deregister."""
        await self.redis.delete(redis_keys.worker_lease(self.record.model, self.record.replica))
        await self.redis.zrem(redis_keys.workers(self.record.model), self.record.replica)

    async def keep(self) -> None:
        """Renew every second, whatever becomes of Redis."""
        while True:
            with contextlib.suppress(RedisError, OSError):  # as a supervisor: tried again a second later
                await self.write()
            await asyncio.sleep(RENEW_INTERVAL_S)


def worker(
    redis: Redis,
    secret: bytes,
    *,
    address: str = "127.0.0.1:1",
    model: str = "local/tiny",
    replica: str = "worker-0",
    route: str = "tiny",
    context_tokens: int = 4096,
    load: Load = Load(),  # noqa: B008
    artifact: ModelArtifact | None = None,
) -> RegisteredWorker:
    """A worker that is not yet registered."""
    digest, packed = pack_artifact(artifact or byte_artifact())
    record = WorkerRecord(
        model=ModelId(model),
        replica=ReplicaId(replica),
        route=route,
        pool="local",
        address=address,
        artifact=digest,
        capabilities=Capabilities(
            context_tokens=context_tokens, dtype="float32", page_size=1, sliding_window_tokens=128
        ),
        load=load,
        expires_at_ms=0,
    )
    return RegisteredWorker(redis, secret, record, packed)


@asynccontextmanager
async def renewing(registered: RegisteredWorker) -> AsyncIterator[RegisteredWorker]:
    """Registered, and renewed in the background until the block ends; not deregistered then."""
    await registered.write()
    task = asyncio.create_task(registered.keep())
    try:
        yield registered
    finally:
        while not task.done():  # before Python 3.12 redis-py can swallow a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
