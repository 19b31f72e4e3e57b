"""From Tenant objects to what a gateway believes, through a real Redis: granted, revoked and expired within seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import Access
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.keys import new_api_key
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.directory import routes_table, tenants_table
from hanmaru_gateway.admission.tenants import TenantStore
from hanmaru_operator.directory import Directory
from hanmaru_operator.plan.tenant import OfferedModel, TenantFacts, TenantObject, TenantSettings, plan_tenants
from hanmaru_testing.gateway import eventually
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

pytestmark = pytest.mark.timeout(60)

KEY = new_api_key()
FACTS = TenantFacts(
    tenants=(),
    secrets={("tenants", "s"): {"key": f"{KEY}\n".encode()}},
    models={ModelId("ml/k"): OfferedModel("k", Access.model_validate({"from": "All"}), owns_route=True)},
    namespaces={},
    settings=TenantSettings(frozenset({"tenants"}), {}, frozenset({"standard"})),
    is_store_reachable=True,
    now=0.0,
)


def _facts(now: datetime, expires_at: datetime | None = None) -> TenantFacts:
    credential: dict[str, object] = {"name": "k", "apiKey": {"secretRef": {"name": "s", "key": "key"}}}
    if expires_at is not None:
        credential["expiresAt"] = expires_at.isoformat()
    spec = TenantSpec.model_validate(
        {"credentials": [credential], "models": [{"namespace": "ml", "name": "k"}, {"namespace": "ml", "name": "none"}]}
    )
    return replace(FACTS, tenants=(TenantObject("tenants", "a", "uid", 1, 1, spec),), now=now.timestamp())


@asynccontextmanager
async def _running(directory: Directory, store: TenantStore) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(directory.run()), asyncio.create_task(store.run())]
    try:
        yield
    finally:
        while any(not task.done() for task in tasks):  # before Python 3.12 redis-py can swallow a cancellation
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)


def _models(store: TenantStore) -> list[str]:
    """What the key may call; nothing when it is refused."""
    try:
        identity = store.directory.identify(f"Bearer {KEY}", datetime.now(UTC))
    except HanmaruError:
        return []
    return [ref.id for ref in identity.spec.models]


def _want(directory: Directory, facts: TenantFacts) -> float | None:
    plan = plan_tenants(facts)
    directory.want(routes=routes_table({}), tenants=tenants_table(plan.specs))
    return plan.next_change_at


async def test_a_key_works_soon_and_stops_soon(operator_redis: Redis, redis_server: RedisServer) -> None:
    gateway_redis = Redis(port=redis_server.port, username="gateway", password=redis_server.passwords["gateway"])
    directory = Directory(operator_redis, on_reachability=lambda _: None, now=time.monotonic)
    store = TenantStore(gateway_redis)
    now = datetime.now(UTC)
    async with _running(directory, store):
        _want(directory, _facts(now))
        await eventually(lambda: _models(store) == ["ml/k"], 3)
        _want(directory, replace(_facts(now), secrets={}))
        await eventually(lambda: _models(store) == [], 3)
        expires_at = now + timedelta(days=1)
        assert _want(directory, _facts(now, expires_at)) == expires_at.timestamp()
        await eventually(lambda: _models(store) == ["ml/k"], 3)
        assert _want(directory, _facts(expires_at, expires_at)) is None
        await eventually(lambda: _models(store) == [], 3)
    await gateway_redis.aclose()
