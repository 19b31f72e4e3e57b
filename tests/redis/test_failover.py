"""Another server takes over while requests run: callers are told to try again, all comes back by itself within
seconds, and what a lost server took with it is written anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import TenantId
from hanmaru_gateway.routing.registry import StoreState
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.slots import slot_of
from hanmaru_testing.redis_topologies import Installation, Server, cluster, sentinel, serving
from hanmaru_testing.redis_world import DEADLINE_S, MODEL, REQUESTERS, TENANTS, World, world

pytestmark = pytest.mark.timeout(120)
BACK_WITHIN_S = 20.0
"""On a busy machine; alone it takes two or three seconds, most of which Redis needs to take a server for lost."""
HARDLY_S = 0.5
"""From the command until nothing more is sent to the old primary. Alone it takes a tenth of that."""


def lose(server: Server, how: str) -> None:
    if how == "killed":
        server.kill()
    else:
        server.pause()


async def require_recovery(made: World, fail: Callable[[], None]) -> None:
    """Everything works, fails at `fail`, and works again without anybody's help."""
    await made.until_whole(20)
    async with made.used():
        await asyncio.sleep(0.5)
        assert not made.failures
        before = made.admitted
        assert before
        await asyncio.to_thread(fail)
        began = time.monotonic()
        async with asyncio.timeout(BACK_WITHIN_S):
            while not made.failures:  # noqa: ASYNC110 - a failure is what is waited for
                await asyncio.sleep(0.02)
            while time.monotonic() - made.last_failed_s < 1.0:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        print(f"\nrequests failed for {made.last_failed_s - began:.1f} s: {len(made.failures)} of them")
        await made.until_whole(BACK_WITHIN_S)
        await asyncio.sleep(0.5)
        assert made.admitted > before
    made.require_clear_failures()
    await made.until_settled(10)


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_sentinels_name_another_primary(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with sentinel(tmp_path) as installation:
        first = installation.primary()
        async with world(installation) as made:
            await require_recovery(made, lambda: lose(first, how))
            if how == "hanging":
                # It still believes that it is the primary, until a sentinel tells it otherwise.
                first.resume()
                async with made.used():
                    await asyncio.sleep(2)
                    await made.until_whole(BACK_WITHIN_S)
            await require_nothing_held(made)
    events = [record.getMessage() for record in caplog.records]
    assert "redis.primary_changed" in events
    assert events.index("store.lost") < events.index("store.back")


async def test_a_sentinel_that_came_back_is_asked_again(tmp_path: Path) -> None:
    """Many ask at once while it is away: each of them sets it behind who answered."""
    with sentinel(tmp_path) as installation:
        first, *others = installation.sentinels
        client = open_redis(installation.access("gateway"), "hanmaru-test", Patience(1.0, 1.0))
        try:
            first.kill()
            await asyncio.gather(*(client.get(redis_keys.TENANTS_VERSION) for _ in range(8)))
            first.start()
            for other in others:
                other.kill()
            await client.connection_pool.disconnect()
            await client.get(redis_keys.TENANTS_VERSION)
        finally:
            await client.aclose()


@pytest.mark.parametrize("how", ["killed", "hanging"])
@pytest.mark.parametrize("whose", ["tenant", "worker"])
async def test_a_clusters_replica_takes_over(
    tmp_path: Path, how: str, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slot = tenant_slot(TENANTS[0]) if whose == "tenant" else slot_of(("GET", redis_keys.workers(MODEL)))
    assert slot is not None
    with cluster(tmp_path, replicas=1) as installation:
        first = serving(installation, slot)
        concerned = {tenant for tenant in TENANTS if serving(installation, tenant_slot(tenant)) is first}
        assert concerned != set(TENANTS)
        async with world(installation) as made:
            if whose == "worker":
                await require_view_recovers(made, lambda: lose(first, how))
            else:
                await require_recovery(made, lambda: lose(first, how))
                assert made.refused == concerned, "whose node is well notices nothing"
            if how == "hanging":
                first.resume()
                await asyncio.sleep(1)
                await made.until_whole(BACK_WITHIN_S)
            await require_nothing_held(made)
        assert serving(installation, slot) is not first
    assert "redis.cluster_changed" in [record.getMessage() for record in caplog.records]


def tenant_slot(tenant: TenantId) -> int:
    slot = slot_of(("GET", redis_keys.quota(tenant, "default")))
    assert slot is not None
    return slot


async def require_view_recovers(made: World, fail: Callable[[], None]) -> None:
    """The gateway's view of workers goes stale, and is fresh again."""
    await made.until_whole(20)
    await asyncio.to_thread(fail)
    async with asyncio.timeout(BACK_WITHIN_S):
        while made.registry.state is StoreState.FRESH:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await made.until_whole(BACK_WITHIN_S)


async def test_a_planned_failover_is_hardly_noticed(tmp_path: Path) -> None:
    """What is on its way at that moment fails with its own deadline, because Redis answers it ten seconds later (6.2.5,
    which ends the pause of clients by its timeout alone). Nothing else fails: each requester is refused at most once.
    """
    with cluster(tmp_path, replicas=1) as installation:
        slot = tenant_slot(TENANTS[0])
        first = serving(installation, slot)
        successor = installation.servers[installation.servers.index(first) + 3]
        async with world(installation) as made:
            await made.until_whole(20)
            async with made.used():
                await asyncio.sleep(0.3)
                assert not made.failures
                began = time.monotonic()
                await asyncio.to_thread(successor.ask, "CLUSTER", "FAILOVER")
                async with asyncio.timeout(BACK_WITHIN_S):
                    while await asyncio.to_thread(serving_safely, installation, slot) is not successor:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                await asyncio.sleep(DEADLINE_S + HARDLY_S)
            failed_for_s = made.last_failed_s - began if made.failures else 0.0
            print(f"\nrequests failed for {failed_for_s:.2f} s: {len(made.failures)} of them")
            assert failed_for_s < DEADLINE_S + HARDLY_S
            assert len(made.failures) <= REQUESTERS
            made.require_clear_failures()
            await made.until_settled(10)
            await require_nothing_held(made)


def serving_safely(installation: Installation, slot: int) -> Server | None:
    with contextlib.suppress(AssertionError):
        return serving(installation, slot)
    return None


async def require_nothing_held(made: World) -> None:
    """No place is taken for good: what was settled is settled, what a lost server forgot is forgotten.

    A reservation whose answer was lost holds a place until it lapses; it was refused to its caller.
    """
    await made.until_settled(10)
    held = sum([await made.running(tenant) for tenant in TENANTS])
    assert held <= len(made.failures)
