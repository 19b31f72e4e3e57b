"""The gateway as a Ray Serve deployment whose replicas own their listeners.

Serve keeps the replicas' number, health and replacement; requests never pass through it (decision 0003). A replica
that replaces another listens on the same ports before the other stops (SO_REUSEPORT, surge), so none is refused.
Made by `launch` on one machine and by `head` on a cluster; the replica runs in a process of Ray's, in an event loop of
Serve's. On a cluster it takes its settings from its own pod, so that what is deployed never changes (decision 0012).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray
from hanmaru_contracts.log import configure_logging
from ray import serve
from ray.serve.config import AutoscalingContext
from ray.serve.schema import LoggingConfig

from hanmaru_gateway.app import Gateway, open_gateway
from hanmaru_gateway.leaving import ENV_LEAVE_SOCKET, leave_when_asked
from hanmaru_gateway.placement import next_target
from hanmaru_gateway.ray_start import NODE_RESOURCE
from hanmaru_gateway.settings import Settings, read_settings

APPLICATION = "hanmaru"
MAX_NODES = 1000
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


class NodeReplica:
    """The gateway process of one node of a cluster, with the settings of that node's environment."""

    _stack: AsyncExitStack
    _gateway: Gateway
    _leave_delay_s: float
    _door: AsyncExitStack
    _leaving: asyncio.Task[None] | None = None

    async def __init__(self) -> None:  # type: ignore[misc]
        configure_logging("gateway")
        settings = read_settings(os.environ, {})
        self._leave_delay_s = settings.leave_delay_s
        self._door = AsyncExitStack()
        self._stack = AsyncExitStack()
        self._gateway = await self._stack.enter_async_context(open_gateway(settings, os.environ))
        await self._door.enter_async_context(leave_when_asked(Path(os.environ[ENV_LEAVE_SOCKET]), self._leave))

    async def check_health(self) -> None:
        """Called by Serve every few seconds; a loop that hangs fails it as well."""
        self._gateway.require_health()

    async def _leave(self) -> None:
        """Be unready until no endpoint names this pod, then end as ever. Once, however often it is asked."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._wait_and_end())
        await asyncio.shield(self._leaving)

    async def _wait_and_end(self) -> None:
        self._gateway.leave()
        await asyncio.sleep(self._leave_delay_s)
        await self._stack.aclose()

    async def __del__(self) -> None:
        # Serve's own reasons: a replica that was judged unhealthy, or one too many.
        await self._leave()
        await self._door.aclose()


def replicas_on_nodes(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: the wanted number of replicas, and what to remember until the next round."""
    wanted, since = next_target(
        nodes=int(ray.cluster_resources().get(NODE_RESOURCE, 0)),
        running=context.current_num_replicas,
        target=context.target_num_replicas,
        now_s=context.current_time or 0.0,
        missing_since_s=context.policy_state.get("missing_since_s"),
    )
    return wanted, {"missing_since_s": since}


def cluster_application() -> serve.Application:
    """The application on a cluster: one replica on each gateway node, for ever the same.

    Nothing in it depends on settings: it is deployed once in a cluster's life, and what a release changes comes with
    its pods. Serve would restart every replica for a second deployment, even of the same (decision 0012).
    """
    deployment = serve.deployment(
        NodeReplica,
        name="gateway",
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": MAX_NODES,
            "policy": {"policy_function": replicas_on_nodes},
        },
        max_ongoing_requests=10_000,
        graceful_shutdown_wait_loop_s=0.1,
        # Serve itself ends only replicas that hang or never finished their start; pods that leave end theirs.
        graceful_shutdown_timeout_s=30.0,
        health_check_period_s=2,
        health_check_timeout_s=10,
        # A pod that cannot start must not end the others' chances: `node` looks at its settings before it joins.
        max_constructor_retry_count=1_000_000,
        ray_actor_options={"num_cpus": 0, "resources": {NODE_RESOURCE: 1}},
        logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
    )
    return deployment.bind()


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
