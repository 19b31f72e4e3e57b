"""What the supervisor shows of itself over HTTP: `/health`, `/ready`, `/metrics`, on a port beside the engine's.

`/health` looks at this process alone; other ranks of a group watch rank 0 by it. `/ready` says whether a gateway would
find this worker. `/metrics` adds the engine's own page, which nobody else can fetch without the engine's key.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

from aiohttp import web
from hanmaru_contracts import metrics
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.worker import Load
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Phase(StrEnum):
    """Where a worker is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Status:
    """What the supervisor knows of itself; it writes, the routes read. `clock` is monotonic."""

    def __init__(self, instance: str, rank: int, clock: Callable[[], float]) -> None:
        self.instance = instance
        """Random, new with each start of the process: a changed one means that the former worker is gone."""
        self.rank = rank
        self.phase = Phase.LOADING
        self.ready_until = 0.0
        """End of the lease as far as this process can know; for a rank above 0, of its sight of rank 0."""
        self._clock = clock
        self._registry = CollectorRegistry()
        self._running = self._gauge(metrics.WORKER_RUNNING_REQUESTS)
        self._queued = self._gauge(metrics.WORKER_QUEUED_REQUESTS)
        self._kv_load = self._gauge(metrics.WORKER_KV_LOAD_RATIO)
        self._gauge(metrics.WORKER_REGISTERED).set_function(
            lambda: float(rank == 0 and self._clock() < self.ready_until)
        )
        renewals = metrics.WORKER_RENEWALS
        self._renewals = Counter(renewals.name, renewals.meaning, renewals.labels, registry=self._registry)

    @property
    def is_ready(self) -> bool:
        """Whether it would be given requests now."""
        return self.phase is Phase.SERVING and self._clock() < self.ready_until

    def loaded(self, load: Load) -> None:
        """Show the engine's latest load."""
        self._running.set(load.running_requests)
        self._queued.set(load.queued_requests)
        self._kv_load.set(load.kv_load_ratio)

    def renewed(self, *, ok: bool) -> None:
        """Count a renewal."""
        self._renewals.labels("ok" if ok else "failed").inc()

    def exposition(self) -> bytes:
        """The supervisor's own metrics as Prometheus text."""
        return generate_latest(self._registry)

    def _gauge(self, metric: metrics.Metric) -> Gauge:
        return Gauge(metric.name, metric.meaning, registry=self._registry)


@asynccontextmanager
async def serving_health(
    status: Status, engine_metrics: Callable[[], Awaitable[bytes]], host: str, port: int
) -> AsyncIterator[None]:
    """Answer on `host:port` until the block ends. Raises HanmaruError (CONFIGURATION) when the port is taken."""

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"phase": status.phase, "instance": status.instance, "rank": status.rank})

    async def ready(_request: web.Request) -> web.Response:
        body = {"ready": status.is_ready, "phase": status.phase}
        return web.json_response(body, status=200 if status.is_ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        page = status.exposition() + await engine_metrics()
        return web.Response(body=page, headers={"Content-Type": _METRICS_TYPE})

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/ready", ready), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise listening_failed("supervisor", "supervisorPort", host, port, error) from error
        yield
    finally:
        await runner.cleanup()


def listening_failed(who: str, setting: str, host: str, port: int, error: OSError) -> HanmaruError:
    """Says which listener is in the way, and what to change."""
    reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return HanmaruError(
        ErrorCode.CONFIGURATION,
        f"the {who} cannot listen on {host}:{port}: {reason}; choose another {setting} in the engine spec",
    )
