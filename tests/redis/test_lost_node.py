"""A node of a cluster is lost and nothing takes its place: tenants on other nodes notice nothing, in any part.

What its own tenants are owed is written when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import RequestId, TenantId
from hanmaru_gateway.admission.quota import Quota
from hanmaru_gateway.request import Identity, Reservation
from hanmaru_gateway.settlement import GROUP
from hanmaru_redis.slots import slot_of
from hanmaru_testing.redis_topologies import Installation, Server, cluster, serving
from hanmaru_testing.redis_world import MODEL, SPEC, TENANTS, World, world

pytestmark = pytest.mark.timeout(120)
NOTICED_S = 1.0
"""Less than a deadline of an exchange with the lost node and the pause after it."""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with cluster(tmp_path) as made:
        yield made


def node_of(installation: Installation, tenant: TenantId) -> Server:
    slot = slot_of(("GET", redis_keys.quota(tenant, "default")))
    assert slot is not None
    return serving(installation, slot)


def divided(installation: Installation) -> tuple[Server, list[TenantId], list[TenantId]]:
    """A node, its tenants, and the others."""
    lost = node_of(installation, TENANTS[0])
    concerned = [tenant for tenant in TENANTS if node_of(installation, tenant) is lost]
    return lost, concerned, [tenant for tenant in TENANTS if tenant not in concerned]


async def reserved(quota: Quota, tenant: TenantId, count: int) -> list[Reservation]:
    """So many requests that run."""
    who = Identity(tenant, SPEC, "key")
    names = (RequestId(f"req-{tenant}-{number}") for number in range(count))
    return [await quota.reserve(who, MODEL, name, prompt_tokens=5, output_tokens=100) for name in names]


async def nothing_runs(made: World, tenant: TenantId) -> None:
    while await made.running(tenant):  # noqa: ASYNC110 - another process is what is waited for
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_what_is_owed_to_a_lost_node_keeps_no_other_tenants_settlements_waiting(
    installation: Installation, how: str
) -> None:
    lost, concerned, well = divided(installation)
    async with world(installation) as made:
        await made.until_whole(20)
        await made.until_settled(10)
        ending = [held for tenant in concerned for held in await reserved(made.quota, tenant, 2 * GROUP)]
        running_on = {tenant: await reserved(made.quota, tenant, 1) for tenant in well}
        if how == "killed":
            lost.kill()
        else:
            lost.pause()
        for held in ending:
            made.settlements.add(held, prompt_tokens=5, output_tokens=10)
        await asyncio.sleep(0.5)
        for tenant in well:
            made.settlements.add(running_on[tenant][0], prompt_tokens=5, output_tokens=10)
            async with asyncio.timeout(NOTICED_S):
                await nothing_runs(made, tenant)
        assert made.settlements.pending >= len(ending)
        await asyncio.to_thread(lost.start if how == "killed" else lost.resume)
        await made.until_settled(20)
        assert [await made.running(tenant) for tenant in TENANTS] == [0] * len(TENANTS)


async def test_the_places_of_other_tenants_are_renewed(installation: Installation) -> None:
    lost, concerned, well = divided(installation)
    async with world(installation) as made:
        await made.until_whole(20)
        quota = Quota(made.gateway_redis, timeout_s=0.5, place_life_s=4.0)
        await reserved(quota, concerned[0], GROUP + 1)
        for tenant in well:
            await reserved(quota, tenant, 1)
        lost.pause()
        until = asyncio.get_running_loop().time() + 5.0
        while asyncio.get_running_loop().time() < until:
            with pytest.raises(HanmaruError) as caught:
                await quota.renew_places()
            assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
            await asyncio.sleep(0.5)
        lost.resume()
        assert [await made.running(tenant) for tenant in well] == [1] * len(well)
