"""Rank 0 of a worker: waits for the first token, holds the lease, drains, deregisters.

`supervisor` runs it and ends the engine afterwards, whatever happened here. What is decided is in `pulse` and `drain`;
what is written in Redis is in `registry`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.wire.worker import LEASE_MS, RENEW_INTERVAL_S, Capabilities, Load, WorkerRecord

from hanmaru_worker.drain import Drain, DrainStep
from hanmaru_worker.engine import Engine
from hanmaru_worker.health import Phase, Status
from hanmaru_worker.pulse import Pulse
from hanmaru_worker.registry import PackedArtifact, Registry, connect
from hanmaru_worker.settings import Settings
from hanmaru_worker.stop import Stop, first_of, wait, when

_log = logging.getLogger(__name__)

LEASE_S = LEASE_MS / 1000
FIRST_TOKEN_INTERVAL_S = 0.5
PROGRESS_INTERVAL_S = 5.0
ENGINE_STOP_GRACE_S = 20.0
"""For an engine without requests; SGLang looks for its SIGTERM every 5 s and then shuts its schedulers down."""
RENEW_TIMEOUT_S = 2.0
"""With a load report (1 s) and the pause between turns (1 s) still less than a lease."""
DEREGISTER_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Model:
    """What rank 0 publishes of its model."""

    artifact: PackedArtifact
    capabilities: Capabilities


class Leader:
    """The one that serves, registers and decides when the group ends."""

    def __init__(
        self, settings: Settings, model: Model, engine: Engine, status: Status, stop: Stop, config_file: Path
    ) -> None:
        self._settings = settings
        self._spec = settings.spec
        self._engine = engine
        self._status = status
        self._stop = stop
        self._config_file = config_file
        client = connect(settings.redis)
        self._registry = Registry(client, settings.replica_key, self._spec.model.id, model.artifact)
        self._record = WorkerRecord(
            model=self._spec.model.id,
            replica=settings.replica,
            route=self._spec.route,
            pool=self._spec.pool,
            address=settings.engine_address,
            artifact=model.artifact.digest,
            capabilities=model.capabilities,
            expires_at_ms=0,
        )
        self._renewed_at = 0.0
        self._is_redis_lost = False

    async def live(self) -> None:
        """Until asked to stop and drained. Raises HanmaruError (ENGINE_FAILED); it is deregistered by then."""
        try:
            if not await first_of(self._engine.fails(), self._load(), when(self._stop.asked, False)):
                return
            # The engine has read its keys; nothing else may find them.
            self._config_file.unlink(missing_ok=True)
            pulse = Pulse(self._spec.hang_timeout_s, time.monotonic())
            outcome = await first_of(
                self._engine.fails(),
                self._probe(pulse),
                self._serve(pulse),
                when(self._stop.hurried, DrainStep.TIMED_OUT),
            )
            await self._deregister()
            if outcome is DrainStep.DONE:
                self._status.phase = Phase.STOPPING
                await first_of(self._engine.stop(ENGINE_STOP_GRACE_S), when(self._stop.hurried, None))
        except Exception:  # our own bugs too: gateways must not wait for the lease to end
            await self._deregister()
            raise
        finally:
            await self._registry.close()

    async def _load(self) -> bool:
        """Wait for the first token; True. Raises HanmaruError after the startup timeout."""
        began = reported = time.monotonic()
        while True:
            left_s = began + self._spec.startup_timeout_s - time.monotonic()
            if left_s <= 0:
                raise self._engine.failure(
                    f"the engine produced no token within startupTimeoutSeconds={self._spec.startup_timeout_s:g}"
                )
            if await self._engine.generates(left_s):
                if not await self._engine.is_closed():
                    raise self._engine.failure("the engine does not refuse the gateways' key on its admin routes")
                break
            if time.monotonic() - reported >= PROGRESS_INTERVAL_S:
                reported = time.monotonic()
                log_event(_log, logging.INFO, "engine.loading", elapsed_s=round(reported - began, 1))
            await asyncio.sleep(FIRST_TOKEN_INTERVAL_S)
        log_event(_log, logging.INFO, "engine.ready", elapsed_s=round(time.monotonic() - began, 1))
        return True

    async def _serve(self, pulse: Pulse) -> DrainStep:
        """Renew every second until drained. Raises HanmaruError when the engine hangs."""
        looked_at = self._renewed_at = time.monotonic()
        self._status.phase = Phase.SERVING
        load = Load()
        drain: Drain | None = None
        while True:
            now = time.monotonic()
            if now - looked_at > LEASE_S:
                # This process was stopped, or the machine slept: one turn takes less.
                log_event(_log, logging.WARNING, "worker.resumed", gap_s=round(now - looked_at, 1))
                pulse.restart(now)
            if complaint := pulse.complaint(now):
                raise self._engine.failure(f"the engine hangs: {complaint}")
            if now - self._renewed_at > LEASE_S:
                await self._check_engine()
            looked_at = time.monotonic()
            report = await self._engine.report()
            if report is not None:
                load = report.load
                self._status.loaded(load)
                pulse.heartbeat(report.heartbeat, time.monotonic())
            if drain is None and self._stop.asked.is_set():
                drain = self._begin_drain()
            await self._renew(load, is_draining=drain is not None)
            if drain is not None:
                step = drain.step(report.load if report else None, time.monotonic())
                if step is not DrainStep.WAIT:
                    left = load.running_requests + load.queued_requests
                    log_event(_log, logging.INFO, "worker.drained", outcome=step, requests_left=left)
                    return step
                await asyncio.sleep(RENEW_INTERVAL_S)
            else:
                await wait(self._stop.asked, RENEW_INTERVAL_S)

    async def _check_engine(self) -> None:
        """The lease is gone, whyever: whoever registers again has just shown that it generates."""
        if not await self._engine.answers(self._spec.hang_timeout_s):
            raise self._engine.failure("the engine did not answer before registering again")

    def _begin_drain(self) -> Drain:
        self._status.phase = Phase.DRAINING
        log_event(_log, logging.INFO, "worker.draining", timeout_s=self._spec.drain_timeout_s)
        return Drain(self._spec.drain_timeout_s, time.monotonic())

    async def _renew(self, load: Load, *, is_draining: bool) -> None:
        began = time.monotonic()
        self._record = msgspec.structs.replace(self._record, load=load, draining=is_draining)
        try:
            async with asyncio.timeout(RENEW_TIMEOUT_S):
                is_new = await self._registry.renew(self._record)
        except (HanmaruError, TimeoutError) as error:
            self._status.renewed(ok=False)
            if not self._is_redis_lost:
                self._is_redis_lost = True
                log_event(_log, logging.WARNING, "redis.lost", message=str(error) or "Redis does not answer")
            return
        self._renewed_at = began
        self._status.ready_until = began + LEASE_S
        self._status.renewed(ok=True)
        if is_new or self._is_redis_lost:
            self._is_redis_lost = False
            log_event(
                _log,
                logging.INFO,
                "worker.registered",
                model=self._record.model,
                replica=self._record.replica,
                address=self._record.address,
                route=self._record.route,
            )

    async def _probe(self, pulse: Pulse) -> DrainStep:
        """Ask for a token three times within each hang timeout; never ends by itself."""
        while True:
            asked_at = time.monotonic()
            pulse.asked(asked_at)
            if await self._engine.answers(self._spec.hang_timeout_s):
                pulse.answered()
            await asyncio.sleep(max(0.0, asked_at + self._spec.hang_timeout_s / 3 - time.monotonic()))

    async def _deregister(self) -> None:
        self._status.ready_until = 0.0
        try:
            async with asyncio.timeout(DEREGISTER_TIMEOUT_S):
                await self._registry.remove(self._record)
        except (HanmaruError, TimeoutError) as error:
            log_event(_log, logging.WARNING, "worker.deregistration_failed", message=str(error))
        else:
            log_event(_log, logging.INFO, "worker.deregistered", replica=self._record.replica)
