"""`hanmaru operator run`: settings -> clients -> wait for the lease -> lead; errors become exit codes here.

The command line calls `main`; Kubernetes restarts the process when it exits with anything but 0. Health and metrics are
served from the first moment, standing by included.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import configure_logging, log_event
from hanmaru_redis.settings import Access
from lightkube.config.kubeconfig import SingleConfig

from hanmaru_operator import kinds
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.health import serve_health
from hanmaru_operator.leader import Elector, LeadershipLost
from hanmaru_operator.leading import Leading
from hanmaru_operator.meters import Meters
from hanmaru_operator.reconcile.children import Trust
from hanmaru_operator.render.settings import RedisFile
from hanmaru_operator.settings import Settings, read_certificate, read_secret, read_settings
from hanmaru_operator.store import connect
from hanmaru_operator.tracing import Tracing, open_tracing, read_endpoint
from hanmaru_operator.types import ObjectKey

_log = logging.getLogger(__name__)

_PUBLIC = frozenset({RedisFile.CA, RedisFile.CERT})
EXIT_FAILED = 1
"""The lease is lost, or something broke: starting again helps."""
EXIT_MISCONFIGURED = 2
"""A setting or file is wrong: starting again does not help."""
STOP_LIMIT_S = 25.0
"""From SIGTERM to the end: running reconciles have ten seconds of it, and Kubernetes waits for thirty."""
LOST_LIMIT_S = 3.0
"""From the loss of the lease to the end; the next leader may begin five seconds after it at the earliest."""


def main() -> int:
    """Run one operator until it is asked to stop; the exit code."""
    configure_logging("operator")
    # kopf says of each retry that it failed; what matters of it comes back as `watch.ended`.
    for noisy in ("kopf", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        settings = read_settings(os.environ, hostname=socket.gethostname())
        connection = read_connection(os.environ)
        tracing = open_tracing(read_endpoint(os.environ))
        asyncio.run(_run(settings, connection, tracing))
    except HanmaruError as error:
        return _failed(error)
    except BaseExceptionGroup as group:
        ours = group.subgroup(HanmaruError)
        if ours is None or group.split(HanmaruError)[1] is not None:
            raise
        return _failed(_first(ours))
    log_event(_log, logging.INFO, "operator.ended")
    return 0


async def _run(settings: Settings, connection: SingleConfig, tracing: Tracing) -> None:
    stop = asyncio.Event()

    def asked_to_stop() -> None:
        _end_within(STOP_LIMIT_S)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    try:
        await run(settings, connection, tracing, stop, on_lost=lambda: _end_within(LOST_LIMIT_S))
    finally:
        await tracing.close()


def _end_within(seconds: float) -> None:
    """End the process by then, whatever still runs or waits: another one leads, or Kubernetes would kill us."""
    timer = threading.Timer(seconds, os._exit, [EXIT_FAILED])
    timer.daemon = True
    timer.start()


async def run(
    settings: Settings,
    connection: SingleConfig,
    tracing: Tracing,
    stop: asyncio.Event,
    *,
    on_lost: Callable[[], None],
) -> None:
    """One operator: stand by, lead, and give the lease back. Raises HanmaruError, alone or in a group.

    `on_lost` is called at once when the lease is lost; what runs is cancelled then, and cannot write any more.
    """
    trust, access = _read_secrets(settings)
    meters = Meters()
    me = f"{settings.pod_name}_{uuid.uuid4().hex[:8]}"
    redis = connect(access)
    async with open_http(connection) as http, redis:
        lease = ObjectKey(kinds.LEASES.kind, settings.namespace, settings.lease.name)
        unbound = Cluster(http, own_namespace=settings.namespace, count_request=meters.requested)
        elector = Elector(unbound, lease, me, times=settings.lease.times)
        cluster = Cluster(
            http,
            own_namespace=settings.namespace,
            tenant_namespaces=settings.tenant_namespaces,
            time_left_s=elector.time_left_s,
            count_request=meters.requested,
        )
        leading = Leading(
            settings, connection, cluster, redis, trust=trust, meters=meters, tracing=tracing, instance=me
        )
        meters.watch(leads=lambda: elector.is_holder, depth=lambda: leading.queue.depth, objects=leading.store.counts)
        async with serve_health(
            settings.host,
            settings.http_port,
            stuck=lambda: leading.stuck,
            unready=lambda: leading.unready if elector.is_holder else None,
            metrics=meters.render,
        ) as port:
            log_event(_log, logging.INFO, "operator.serving", identity=me, port=port)
            await _lead(elector, leading, stop, on_lost)


async def _lead(elector: Elector, leading: Leading, stop: asyncio.Event, on_lost: Callable[[], None]) -> None:
    async def keep() -> None:
        try:
            await elector.keep()
        except LeadershipLost:
            on_lost()
            raise

    if not await _before(stop, elector.acquire()):
        return
    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(keep(), name="keep the lease")
            await leading.run(stop)
            keeper.cancel()
    finally:
        await elector.release()


async def _before(stop: asyncio.Event, waited_for: Awaitable[None]) -> bool:
    """Wait for it, but no longer than until `stop`; whether it came."""
    stopped, done = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(waited_for)
    try:
        await asyncio.wait([stopped, done], return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            await done
        return done.done()
    finally:
        stopped.cancel()
        done.cancel()


def _read_secrets(settings: Settings) -> tuple[Trust, Access]:
    """What replicas' secrets are made of, and our own way into Redis."""
    platform_secret = read_secret(settings.platform_secret_file, "platform secret").encode()
    workers, tier = (
        {
            file: (read_certificate if file in _PUBLIC else read_secret)(path, f"{whose} {file}")
            for file, path in files.items()
        }
        for whose, files in (("workers'", settings.worker_redis_files), ("shared caches'", settings.tier_redis_files))
    )
    return Trust(platform_secret, workers, tier), settings.redis_access(read_secret)


def _first(group: BaseExceptionGroup[HanmaruError]) -> HanmaruError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HanmaruError)
    return error


def _failed(error: HanmaruError) -> int:
    log_event(_log, logging.ERROR, "operator.failed", code=error.code, message=error.message)
    return EXIT_MISCONFIGURED if error.code is ErrorCode.CONFIGURATION else EXIT_FAILED
