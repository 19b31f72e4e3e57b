"""Composition root: settings in, a running gateway out. The only wiring; everything it makes it also ends.

`open_gateway` serves from the event loop it is called in: a Ray Serve replica's (`deployment`), or a test's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_redis.opening import Patience, open_redis
from prometheus_client import disable_created_metrics

from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS
from hanmaru_gateway.admission.quota import Quota
from hanmaru_gateway.admission.tenants import TenantFileSource, TenantStore
from hanmaru_gateway.dispatch.dispatcher import Dispatcher
from hanmaru_gateway.dispatch.engine import EngineClient
from hanmaru_gateway.flow import Flow
from hanmaru_gateway.grpc.server import GrpcServer, Tls, serve_grpc
from hanmaru_gateway.http.asgi import RestEdge
from hanmaru_gateway.http.server import HttpServer
from hanmaru_gateway.meters import Meters, MetricsApp
from hanmaru_gateway.rendering.store import RendererStore
from hanmaru_gateway.routing.policies import least_loaded
from hanmaru_gateway.routing.registry import Registry, StoreState
from hanmaru_gateway.settings import Settings, read_secret
from hanmaru_gateway.settlement import Settlements
from hanmaru_gateway.tracing import TracingSettings, open_tracing

log = logging.getLogger(__name__)

REDIS_CLIENT = "hanmaru-gateway"
RENDER_THREADS = 2
FLUSH_TIMEOUT_S = 3.0
_CANCEL_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves, and where."""

    http: HttpServer
    grpc: GrpcServer
    metrics: HttpServer
    flow: Flow
    registry: Registry
    loops: Sequence[asyncio.Task[None]]
    """What runs beside the listeners; one that ends has failed."""
    leaving: asyncio.Event
    """Set by `leave`."""

    def leave(self) -> None:
        """From now on say unready, and close each connection with its answer; everything is served as before."""
        self.leaving.set()

    def require_health(self) -> None:
        """Raise HanmaruError (INTERNAL) when a part of this process has ended that should not have."""
        if self.leaving.is_set():
            return
        if any(loop.done() for loop in self.loops) or not self.http.is_serving:
            raise HanmaruError(ErrorCode.INTERNAL, "a part of the gateway has ended")


@asynccontextmanager
async def open_gateway(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[Gateway]:
    """A gateway that listens, until the block ends: then running answers end, within the settings' bound.

    `environment` is read for OpenTelemetry's own variables alone. Raises HanmaruError (CONFIGURATION).
    """
    platform_secret = read_secret(settings.platform_secret_file, "platform secret").encode()
    tls = _tls(settings)
    access = settings.redis_access(read_secret)
    async with AsyncExitStack() as stack:
        tracing = open_tracing(TracingSettings.from_env(environment))
        stack.push_async_callback(tracing.close)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # each would double its metric's lines
        meters = Meters()
        connect_s = settings.redis_timeout_s / 2
        redis = open_redis(access, REDIS_CLIENT, Patience(connect_s, settings.redis_timeout_s))
        stack.push_async_callback(redis.aclose)
        executor = ThreadPoolExecutor(RENDER_THREADS, thread_name_prefix="render")
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        engines = EngineClient(
            platform_secret,
            connect_timeout_s=settings.connect_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            answer_timeout_s=settings.answer_timeout_s,
        )
        stack.callback(engines.close)

        tenants = TenantStore(redis)
        # `Quota` bounds its own waiting; a timeout for each answer is a third of what a lone reservation costs.
        quota_redis = open_redis(access, REDIS_CLIENT, Patience(connect_s, None))
        stack.push_async_callback(quota_redis.aclose)
        quota = Quota(quota_redis, timeout_s=settings.redis_timeout_s)
        settlements = Settlements(quota, meters, time.monotonic)
        renderers = RendererStore(redis, executor, time.monotonic)
        registry = Registry(
            redis,
            platform_secret,
            want_artifacts=renderers.want,
            has_artifact=lambda digest: renderers.get(digest) is not None,
            meters=meters,
            now=time.monotonic,
            now_ms=lambda: time.time_ns() // 1_000_000,
            interval_s=settings.poll_interval_s,
        )
        meters.watch_inflight(lambda: registry.inflight_requests)
        meters.watch_settlements(lambda: settlements.pending)
        flow = Flow(
            tenants=tenants,
            quota=quota,
            settlements=settlements,
            registry=registry,
            renderer=renderers.get,
            dispatcher=Dispatcher(registry, engines, least_loaded, meters, random.random),
            tracing=tracing,
            meters=meters,
            executor=executor,
            platform_secret=platform_secret,
            bounds=DEFAULT_BOUNDS,
            unasked_tokens=settings.default_output_tokens,
            now=time.monotonic,
            wall_now=lambda: datetime.now(UTC),
        )

        leaving = asyncio.Event()

        def why_not_ready() -> list[str]:
            missing = ["leaving"] if leaving.is_set() else []
            if registry.state is not StoreState.FRESH:
                missing.append("store")
            elif not renderers.was_complete:
                missing.append("artifacts")
            if not tenants.loaded.is_set():
                missing.append("tenants")
            return missing

        running = [tenants.run(), registry.run(), renderers.run(), quota.run(), settlements.run()]
        if settings.tenants_file is not None:
            running.append(TenantFileSource(redis, settings.tenants_file).run())
        loops = [asyncio.create_task(loop) for loop in running]
        stack.push_async_callback(_end, loops)
        stack.push_async_callback(settlements.flush, FLUSH_TIMEOUT_S)

        grpc = await serve_grpc(
            flow,
            settings.host,
            settings.grpc_port,
            is_ready=lambda: not why_not_ready(),
            body_bytes=settings.body_bytes,
            write_timeout_s=settings.write_timeout_s,
            reuse_port=True,
            tls=tls,
        )
        edge = RestEdge(
            flow,
            why_not_ready=why_not_ready,
            body_bytes=settings.body_bytes,
            body_timeout_s=settings.body_timeout_s,
            is_leaving=leaving.is_set,
        )
        http = HttpServer(edge, settings, settings.http_port)
        metrics = HttpServer(MetricsApp(meters), settings, settings.metrics_port)
        stack.push_async_callback(metrics.stop)
        # Both at once: each gives running answers the whole of the bound.
        stack.push_async_callback(_stop_listeners, http, grpc, settings.shutdown_timeout_s)
        await metrics.start()
        await http.start()
        log_event(
            log,
            logging.INFO,
            "gateway.listening",
            host=settings.host,
            http_port=http.port,
            grpc_port=grpc.port,
            metrics_port=metrics.port,
        )
        yield Gateway(http, grpc, metrics, flow, registry, loops, leaving)
        log_event(log, logging.INFO, "gateway.stopping")


async def _end(loops: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended; what one of them failed with is logged.

    Not a TaskGroup, which cancels once: redis-py uses `asyncio.wait_for`, and before Python 3.12 that swallows a
    cancellation which arrives together with its result.
    """
    while running := [loop for loop in loops if not loop.done()]:
        for loop in running:
            loop.cancel()
        await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)
    for loop in loops:
        error = None if loop.cancelled() else loop.exception()
        if error is not None:
            log_event(log, logging.ERROR, "gateway.loop_failed", error=type(error).__name__)


async def _stop_listeners(http: HttpServer, grpc: GrpcServer, timeout_s: float) -> None:
    await asyncio.gather(http.stop(), grpc.stop(timeout_s))


def _tls(settings: Settings) -> Tls | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Tls(
        read_secret(settings.tls_cert_file, "TLS certificate").encode(),
        read_secret(settings.tls_key_file, "TLS key").encode(),
    )
