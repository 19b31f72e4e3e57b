"""A whole gateway in the test's event loop: real Redis, scripted engines under real registrations, real listeners.

Two tenants exist: `acme`, who may call `tiny`, and `other`, who may call something else. Each test says what differs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
from hanmaru_contracts import keys, redis_keys
from hanmaru_contracts.names import TenantId
from hanmaru_gateway.app import Gateway, open_gateway
from hanmaru_gateway.settings import Settings
from redis.asyncio import Redis

from hanmaru_testing.fleet import RegisteredWorker, renewing, worker
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.scripted_engine_sse import ScriptedEngine, scripted_engine

READY_DEADLINE_S = 10.0
EVENTUALLY_S = 10.0


@dataclass
class Rig:
    """Everything a test may touch."""

    gateway: Gateway
    server: RedisServer
    redis: Redis
    """As the all-powerful default user."""
    secret: bytes
    engines: list[ScriptedEngine]
    workers: list[RegisteredWorker]
    key: str
    """Of tenant `acme`."""
    other_key: str
    """Of tenant `other`, who may not call `tiny`."""
    tenants_file: Path
    tenants: list[dict[str, Any]]
    client: aiohttp.ClientSession
    """With acme's key."""
    url: str

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[0]

    async def chat(self, **fields: Any) -> aiohttp.ClientResponse:
        """A chat request; read or close what comes."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def error_of(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The error object of an OpenAI error body."""
        body = await response.json()
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        error: dict[str, Any] = body["error"]
        return error

    def write_tenants(self) -> None:
        """Put `tenants` into the file; in force within two seconds."""
        self.tenants_file.write_text(json.dumps({"tenants": self.tenants}))

    async def levels(self, limit: str = "default") -> dict[str, int]:
        """Acme's buckets of that limit, in tokens times 60,000."""
        answer = await self.redis.hgetall(redis_keys.quota(TenantId("acme"), limit))
        raw = cast("dict[bytes, bytes]", answer)
        return {name.decode(): int(value) for name, value in raw.items()}

    async def settled(self) -> None:
        """Every ended request has been written to Redis, and nobody holds a reservation."""
        await eventually(self._nothing_reserved)

    async def _nothing_reserved(self) -> bool:
        return not [key async for key in self.redis.scan_iter("hm:{t:*}:reservation:*")]


async def eventually(condition: Any, deadline_s: float = EVENTUALLY_S) -> None:
    """Wait until the (maybe async) condition holds; fail the test when it does not in time."""
    async with asyncio.timeout(deadline_s):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.02)


def tenant(name: str, key: str, models: Sequence[str], limits: Sequence[Mapping[str, object]] = ()) -> dict[str, Any]:
    """An entry of a tenants file."""
    return {
        "name": name,
        "credentials": [{"name": "test", "apiKey": {"sha256": keys.api_key_digest(key)}}],
        "models": [dict(zip(("namespace", "name"), model.split("/"), strict=True)) for model in models],
        "limits": list(limits),
    }


@asynccontextmanager
async def running_gateway(
    server: RedisServer,
    folder: Path,
    *,
    workers: int = 1,
    limits: Sequence[Mapping[str, object]] = (),
    script: Mapping[str, Any] | None = None,
    context_tokens: int = 4096,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A gateway that is ready and sees its workers. `script` sets the engines' fields, `environment` tracing."""
    secret = secrets.token_hex(32)
    key, other_key = keys.new_api_key(), keys.new_api_key()
    (folder / "secret").write_text(secret)
    tenants_file = folder / "tenants.json"
    tenants = [tenant("acme", key, ["local/tiny"], limits), tenant("other", other_key, ["local/another"])]
    tenants_file.write_text(json.dumps({"tenants": tenants}))
    access: dict[str, Any] = {"redis_url": server.url}
    if server.passwords:
        (folder / "password").write_text(server.passwords["gateway"])
        access |= {"redis_user": "gateway", "redis_password_file": folder / "password"}
    async with AsyncExitStack() as stack:
        redis = Redis(port=server.port)
        stack.push_async_callback(redis.aclose)
        await redis.flushall()
        engines, registered = [], []
        for number in range(workers):
            one = worker(redis, secret.encode(), replica=f"worker-{number}", context_tokens=context_tokens)
            engine = await stack.enter_async_context(scripted_engine(one.api_key, **(script or {})))
            one.record = msgspec.structs.replace(one.record, address=engine.address)
            engines.append(engine)
            registered.append(await stack.enter_async_context(renewing(one)))
        wanted = Settings(
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            platform_secret_file=folder / "secret",
            tenants_file=tenants_file,
            **{"shutdown_timeout_s": 2.0, "poll_interval_s": 0.05, **access, **settings},
        )
        gateway = await stack.enter_async_context(open_gateway(wanted, environment or {}))
        url = f"http://127.0.0.1:{gateway.http.port}"
        client = await stack.enter_async_context(aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}))
        rig = Rig(
            gateway,
            server,
            redis,
            secret.encode(),
            engines,
            registered,
            key,
            other_key,
            tenants_file,
            tenants,
            client,
            url,
        )
        await eventually(lambda: _sees(rig, workers), READY_DEADLINE_S)
        yield rig


async def _sees(rig: Rig, workers: int) -> bool:
    async with rig.client.get("/ready") as ready:
        if ready.status != 200:
            return False
    models = rig.gateway.registry.fleet.models.values()
    return sum(len(model.workers) for model in models) == workers
