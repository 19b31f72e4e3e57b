"""The gateway as a Ray Serve deployment whose replicas own their listeners.

Serve keeps the replicas' number, health and replacement; requests never pass through it (decision 0003). A replica
that replaces another listens on the same ports before the other stops (SO_REUSEPORT, surge), so none is refused.
Made by `launch`; the replica runs in a process of Ray's, in an event loop of Serve's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack

from hanmaru_contracts.log import configure_logging
from ray import serve
from ray.serve.schema import LoggingConfig

from hanmaru_gateway.app import Gateway, open_gateway
from hanmaru_gateway.settings import Settings

APPLICATION = "hanmaru"
KILL_MARGIN_S = 10.0
"""After our own bound on shutting down, before Serve's controller kills the replica."""


class GatewayReplica:
    """One gateway process. Serve awaits `__init__` and `__del__`."""

    _stack: AsyncExitStack
    _gateway: Gateway

    async def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:  # type: ignore[misc]
        configure_logging("gateway")
        self._stack = AsyncExitStack()
        self._gateway = await self._stack.enter_async_context(open_gateway(settings, environment))

    async def check_health(self) -> None:
        """Called by Serve every few seconds; a loop that hangs fails it as well."""
        self._gateway.require_health()

    async def __del__(self) -> None:
        # Serve awaits this before it ends the process: running answers end within the settings' bound.
        await self._stack.aclose()


def gateway_application(settings: Settings, replicas: int) -> serve.Application:
    """The application for `serve.run`."""
    deployment = serve.deployment(
        GatewayReplica,
        name="gateway",
        num_replicas=replicas,
        max_ongoing_requests=10_000,
        # Serve counts no requests of ours: waiting for its count to fall is waiting for nothing.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s + KILL_MARGIN_S,
        health_check_period_s=2,
        health_check_timeout_s=10,
        # The new replica is up before the old one stops; Serve's default leaves a gap.
        max_surge_percent=100,
        # What keeps a replica from starting is said at once, not after Serve's twenty tries.
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": 0.1},
        logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
    )
    tracing = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    return deployment.bind(settings, tracing)
