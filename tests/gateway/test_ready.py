"""A gateway says what it lacks until it can serve whatever others serve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hanmaru_gateway.app import open_gateway
from hanmaru_gateway.settings import Settings
from hanmaru_testing.fleet import byte_artifact, renewing, worker

pytestmark = pytest.mark.timeout(60)
SLOW_TEMPLATE = "{{ messages[0].content }}" * 2_000
"""Takes some tenths of a second to compile."""


async def test_a_gateway_is_ready_only_when_it_can_render_for_the_workers_there_are(
    make_rig: Any, tmp_path: Path
) -> None:
    async with make_rig(workers=0) as rig:
        settings = Settings(
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            shutdown_timeout_s=0.5,
            platform_secret_file=tmp_path / "secret",
            tenants_file=rig.tenants_file,
            redis_url=rig.server.url,
            redis_user="gateway",
            redis_password_file=tmp_path / "password",
        )
        slow = worker(rig.redis, rig.secret, artifact=byte_artifact(SLOW_TEMPLATE))
        async with renewing(slow), open_gateway(settings, {}) as gateway, aiohttp.ClientSession() as client:
            seen: list[list[str]] = []
            while not seen or seen[-1]:
                async with client.get(f"http://127.0.0.1:{gateway.http.port}/ready") as response:
                    seen.append((await response.json())["missing"])
                    assert response.status == (503 if seen[-1] else 200)
                await asyncio.sleep(0.02)
            assert ["artifacts"] in seen
