"""A whole gateway: requests reach the owners of a route, divided by weight, and nobody who only claims it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest
from hanmaru_contracts.names import ModelId
from hanmaru_contracts.wire.directory import routes_table
from hanmaru_testing.fleet import RegisteredWorker, renewing, worker
from hanmaru_testing.gateway import Rig, eventually
from hanmaru_testing.scripted_engine_sse import ScriptedEngine, scripted_engine

pytestmark = pytest.mark.timeout(60)

OWNER, SECOND = ModelId("local/tiny"), ModelId("a/tiny")
"""The second sorts first, so that it would be chosen where nobody owns routes."""


@asynccontextmanager
async def _second(rig: Rig) -> AsyncIterator[tuple[ScriptedEngine, RegisteredWorker]]:
    """Another model's worker under the same route, which acme may call as well."""
    one = worker(rig.redis, rig.secret, model=SECOND)
    async with scripted_engine(one.api_key) as engine:
        one.record = msgspec.structs.replace(one.record, address=engine.address)
        async with renewing(one):
            rig.tenants[0]["models"].append({"namespace": "a", "name": "tiny"})
            rig.write_tenants()
            await eventually(lambda: SECOND in rig.gateway.registry.fleet.models)
            await eventually(lambda: _may_call_both(rig))
            yield engine, one


def _may_call_both(rig: Rig) -> bool:
    return len(rig.gateway.flow.identify(f"Bearer {rig.key}").spec.models) == 2


async def _own(rig: Rig, weights: Mapping[ModelId, int]) -> None:
    table = routes_table({"tiny": weights})
    await rig.redis.hset(table.key, mapping=dict(table.entries))
    await rig.redis.set(table.version_key, table.digest)
    await eventually(lambda: rig.gateway.registry.fleet.weights == {"tiny": weights})


async def _ask(rig: Rig, times: int) -> None:
    for _ in range(times):
        async with await rig.chat() as response:
            assert response.status == 200, await response.text()


async def test_a_worker_under_a_stolen_route_receives_no_request(rig: Rig) -> None:
    async with _second(rig) as (thief, _):
        await _ask(rig, 1)
        assert len(thief.requests) == 1, "where nobody owns routes, workers are believed"
        await _own(rig, {OWNER: 100})
        await _ask(rig, 10)
        assert len(thief.requests) == 1
        assert len(rig.engine.requests) == 10
        async with rig.client.get("/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]


async def test_a_route_is_shared_by_weight_while_both_live(rig: Rig) -> None:
    async with _second(rig) as (second, registered):
        await _own(rig, {OWNER: 75, SECOND: 25})
        await _ask(rig, 80)
        assert 5 < len(second.requests) < 40
        assert len(second.requests) + len(rig.engine.requests) == 80
        async with rig.client.get("/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
        registered.record = msgspec.structs.replace(registered.record, draining=True)
        await eventually(lambda: SECOND not in rig.gateway.registry.fleet.models)
        before = len(second.requests)
        await _ask(rig, 10)
        assert len(second.requests) == before


async def test_an_owned_route_without_workers_is_a_503_and_a_name_nobody_owns_a_404(rig: Rig) -> None:
    await _own(rig, {SECOND: 100})
    rig.tenants[0]["models"].append({"namespace": "a", "name": "tiny"})
    rig.write_tenants()
    await eventually(lambda: _may_call_both(rig))
    async with await rig.chat() as response:
        assert response.status == 503
    table = routes_table({})
    await rig.redis.delete(table.key)
    await rig.redis.set(table.version_key, table.digest)
    await eventually(lambda: rig.gateway.registry.fleet.weights == {})
    async with await rig.chat() as response:
        assert response.status == 404
