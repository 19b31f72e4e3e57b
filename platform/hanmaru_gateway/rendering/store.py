"""The renderers of all models in use, loaded from Redis by content hash.

`registry` says which artifacts live workers name; this loads each once, off the event loop, and keeps a few that are
no longer named, because a rollout that goes back needs them. Leaves out: who may call which model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from hanmaru_contracts import redis_keys
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.worker import unpack_artifact
from hanmaru_redis import UNREACHABLE, Redis
from hanmaru_redis.explaining import explain

from hanmaru_gateway.rendering.renderer import Renderer

log = logging.getLogger(__name__)

KEPT_RENDERERS = 8
"""A large tokenizer takes some 100 MB of memory once loaded."""
RETRY_AFTER_S = 2.0
"""After an artifact that was absent or unusable."""


class RendererStore:
    """`want` what is needed, `run` loads it, `get` it."""

    def __init__(self, redis: Redis, executor: Executor, now: Callable[[], float]) -> None:
        self._redis = redis
        self._executor = executor
        self._now = now
        self._renderers: dict[str, Renderer] = {}
        self._wanted: dict[str, ModelId] = {}
        self._not_before: dict[str, float] = {}
        self._news = asyncio.Event()
        self.was_complete = False
        """There was a look at the workers that found each one's artifact loaded, or tried in vain. A process that has
        just begun knows no model before, and would refuse what others serve."""

    def get(self, digest: str) -> Renderer | None:
        """The loaded renderer of that artifact."""
        return self._renderers.get(digest)

    def want(self, artifacts: Mapping[str, ModelId]) -> None:
        """Say which artifacts live workers name; loading begins soon."""
        self._wanted = dict(artifacts)
        self.was_complete |= all(digest in self._renderers or digest in self._not_before for digest in artifacts)
        if any(digest not in self._renderers for digest in artifacts):
            self._news.set()

    async def run(self) -> None:
        """Load what is wanted, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            for digest, model in list(self._wanted.items()):
                if digest not in self._renderers and self._now() >= self._not_before.get(digest, 0.0):
                    await self._load(model, digest)

    async def _load(self, model: ModelId, digest: str) -> None:
        try:
            packed = await self._redis.get(redis_keys.artifact(model, digest))
            if not isinstance(packed, bytes):
                raise ValueError("no such artifact is published")
            renderer = await asyncio.get_running_loop().run_in_executor(self._executor, _build, packed, digest)
        except (*UNREACHABLE, ValueError) as error:
            self._not_before[digest] = self._now() + RETRY_AFTER_S
            reason = str(error) if isinstance(error, ValueError) else explain(error)
            log_event(log, logging.WARNING, "artifact.unusable", model=model, digest=digest, reason=reason)
            return
        self._not_before.pop(digest, None)
        self._renderers[digest] = renderer
        log_event(log, logging.INFO, "artifact.loaded", model=model, digest=digest)
        for old in [known for known in self._renderers if known not in self._wanted]:
            if len(self._renderers) > KEPT_RENDERERS:
                del self._renderers[old]


def _build(packed: bytes, digest: str) -> Renderer:
    return Renderer(unpack_artifact(packed, digest))
