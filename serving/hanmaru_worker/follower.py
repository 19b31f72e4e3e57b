"""A rank above 0: runs its part of the engine, registers nothing, and ends when rank 0 is gone.

`supervisor` runs it and ends the engine afterwards. It asks rank 0's supervisor for `/health` at the host of the
group's rendezvous address and the spec's supervisor port; `group` decides. Nothing is needed the other way round: when
this rank's engine breaks, rank 0's engine fails or hangs, and its supervisor notices.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
from hanmaru_contracts.wire.worker import LEASE_MS

from hanmaru_worker.engine import Engine
from hanmaru_worker.group import ASK_INTERVAL_S, ASK_TIMEOUT_S, LeaderHealth, LeaderWatch, read_leader
from hanmaru_worker.health import Phase, Status
from hanmaru_worker.settings import Settings
from hanmaru_worker.stop import Stop, first_of, when

_GAP_S = LEASE_MS / 1000
"""A turn that took longer means that this process was stopped, or the machine slept."""


class Follower:
    """A rank above 0: its part of the engine, and an eye on rank 0."""

    def __init__(self, settings: Settings, engine: Engine, status: Status, stop: Stop) -> None:
        self._spec = settings.spec
        self._leader_url = f"http://{settings.rank.leader_host}:{settings.spec.supervisor_port}/health"
        self._engine = engine
        self._status = status
        self._stop = stop

    async def live(self) -> None:
        """Until rank 0 has ended. Raises HanmaruError (ENGINE_FAILED) when nobody asked for that."""
        await first_of(self._engine_ended(), self._watch(), when(self._stop.hurried, None))

    async def _watch(self) -> None:
        """Ends after SIGTERM, when rank 0 has drained. Raises HanmaruError when rank 0 is gone before that."""
        asked_to_stop_at: float | None = None
        looked_at = time.monotonic()
        watch = LeaderWatch(self._spec.startup_timeout_s, looked_at)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)) as http:
            while True:
                leader = await _ask_leader(http, self._leader_url)
                now = time.monotonic()
                if now - looked_at > _GAP_S:
                    watch.restart(now)
                looked_at = now
                if leader is not None:
                    watch.saw(leader, now)
                    if leader.phase in (Phase.SERVING, Phase.DRAINING):
                        self._status.phase = leader.phase
                        self._status.ready_until = now + _GAP_S
                complaint = watch.complaint(now)
                if self._stop.asked.is_set():
                    # The group drains as one: rank 0's requests need this rank until the last has finished.
                    asked_to_stop_at = asked_to_stop_at or now
                    is_over = now - asked_to_stop_at > self._spec.drain_timeout_s
                    if complaint or is_over or watch.is_silent(now) or self._status.phase is Phase.LOADING:
                        return
                elif complaint:
                    raise self._engine.failure(complaint)
                await asyncio.sleep(ASK_INTERVAL_S)

    async def _engine_ended(self) -> None:
        """This engine ends with rank 0's; that is a failure only when nobody asked for the end."""
        status = await self._engine.ended()
        if not self._stop.asked.is_set():
            raise self._engine.ended_by_itself(status)


async def _ask_leader(http: aiohttp.ClientSession, url: str) -> LeaderHealth | None:
    try:
        async with http.get(url) as answer:
            return read_leader(await answer.read())
    except (aiohttp.ClientError, TimeoutError):
        return None
