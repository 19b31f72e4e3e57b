"""A cluster's slots move while they are used: no request notices, whether a key is here, there, or on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hanmaru_contracts import redis_keys
from hanmaru_redis import UNREACHABLE, Redis, WatchError
from hanmaru_redis.explaining import explain
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.slots import slot_of
from hanmaru_testing.redis_topologies import HOST, Installation, Server, cluster, node_id, serving
from hanmaru_testing.redis_world import MODEL, REPLICA, TENANTS, world

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


class Move:
    """A slot on its way from the node that serves it to another."""

    def __init__(self, installation: Installation, key: str) -> None:
        slot = slot_of(("GET", key))
        assert slot is not None
        self.slot = str(slot)
        self.nodes = installation.servers
        self.source = serving(installation, slot)
        self.target = next(node for node in self.nodes if node is not self.source)

    def begin(self) -> None:
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", node_id(self.source))
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", node_id(self.target))

    def carry(self, *keys: str) -> None:
        """These keys, or all that are left."""
        found = keys or [key.decode() for key in self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, "1000")]
        for key in found:
            self.source.ask(
                "MIGRATE", HOST, str(self.target.port), key, "0", "2000", "REPLACE", "AUTH2", "default",
                self.target.password,
            )  # fmt: skip

    def end(self) -> None:
        for node in (self.target, self.source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", node_id(self.target))


def opened(installation: Installation, role: str) -> Redis:
    return open_redis(installation.access(role), "hanmaru-test", Patience(1.0, 1.0))


def test_tenants_lie_on_several_nodes(installation: Installation) -> None:
    """Else the tests below would show little."""
    nodes: set[int] = set()
    for tenant in TENANTS:
        slot = slot_of(("GET", redis_keys.quota(tenant, "default")))
        assert slot is not None
        server: Server = serving(installation, slot)
        nodes.add(server.port)
    assert len(nodes) > 1


async def test_everything_that_is_used_can_move(installation: Installation) -> None:
    keys = (
        redis_keys.MODELS,
        redis_keys.workers(MODEL),
        redis_keys.TENANTS,
        redis_keys.ROUTES,
        *(redis_keys.quota(tenant, "default") for tenant in TENANTS),
    )
    async with world(installation) as made:
        await made.until_whole(20)
        async with made.used():
            for key in keys:
                move = Move(installation, key)
                await asyncio.to_thread(move.begin)
                await asyncio.to_thread(move.carry)
                await asyncio.to_thread(move.end)
                await asyncio.sleep(0.1)
            await made.until_whole(10)
        assert made.admitted > 50
        assert not made.failures
        await made.until_settled(10)


async def test_a_key_is_found_wherever_it_is(installation: Installation) -> None:
    gateway = opened(installation, "gateway")
    here, there = redis_keys.quota(TENANTS[0], "here"), redis_keys.quota(TENANTS[0], "there")
    try:
        for key in (here, there):
            await gateway.hset(key, "x", key)
        move = Move(installation, here)
        move.begin()
        move.carry(there)
        async with gateway.pipeline(transaction=False) as pipe:
            for key in (here, there, redis_keys.TENANTS_VERSION):
                pipe.exists(key)
            pipe.hget(there, "x")
            assert await pipe.execute() == [1, 1, (await gateway.exists(redis_keys.TENANTS_VERSION)), there.encode()]
        assert await gateway.hget(there, "x") == there.encode()
        move.carry()
        move.end()
        assert await gateway.hget(here, "x") == here.encode()
    finally:
        await gateway.aclose()


async def test_what_touches_several_keys_waits_until_all_have_moved(installation: Installation) -> None:
    gateway = opened(installation, "gateway")
    here, there = redis_keys.quota(TENANTS[1], "here"), redis_keys.quota(TENANTS[1], "there")
    count = "return redis.call('HINCRBY', KEYS[1], 'n', 1) + redis.call('HINCRBY', KEYS[2], 'n', 1)"
    try:
        assert await gateway.eval(count, 2, here, there) == 2
        move = Move(installation, here)
        move.begin()
        move.carry(there)
        waiting = asyncio.create_task(asyncio.wait_for(gateway.eval(count, 2, here, there), 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(move.carry)
        await asyncio.to_thread(move.end)
        assert await waiting == 4
        async with gateway.pipeline(transaction=True) as pipe:
            pipe.hget(here, "n")
            pipe.hgetall(there)
            assert await pipe.execute() == [b"2", {b"n": b"2"}]
    finally:
        await gateway.aclose()


async def test_what_was_watched_is_looked_at_again_where_it_went(installation: Installation) -> None:
    operator = opened(installation, "operator")
    key = redis_keys.ROUTES

    async def add_one() -> None:
        async with operator.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            held = await pipe.hgetall(key)
            if interruption:
                await asyncio.to_thread(interruption.pop())
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(key, "n", str(int(held.get(b"n", b"0")) + 1))
            await pipe.execute()

    interruption = []
    try:
        await operator.delete(key)
        await add_one()

        def moved() -> None:
            move = Move(installation, key)
            move.begin()
            move.carry()
            move.end()

        interruption.append(moved)
        with pytest.raises(WatchError):
            await add_one()
        await add_one()
        assert await operator.hgetall(key) == {b"n": b"2"}
    finally:
        await operator.aclose()


async def test_what_is_watched_while_its_slot_moves_is_looked_at_again(installation: Installation) -> None:
    operator = opened(installation, "operator")
    keys = (redis_keys.ROUTES, redis_keys.ROUTES_VERSION)
    try:
        await operator.delete(*keys)
        await operator.hset(keys[0], "a", "1")
        await operator.set(keys[1], "1")
        move = Move(installation, keys[0])
        move.begin()
        move.carry(keys[0])
        for watched in (keys[:1], keys):
            async with operator.pipeline(transaction=True) as pipe:
                with pytest.raises(WatchError) as caught:
                    await pipe.watch(*watched)
            assert "redis+cluster" not in explain(caught.value)
        async with operator.pipeline(transaction=True) as pipe:
            await pipe.watch(keys[1])
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(keys[0], "a", "2")
            with pytest.raises(WatchError):
                await pipe.execute()
        move.carry()
        move.end()
        assert await operator.get(keys[1]) == b"1"
        async with operator.pipeline(transaction=True) as pipe:
            await pipe.watch(*keys)
            assert await pipe.hgetall(keys[0]) == {b"a": b"1"}
    finally:
        await operator.aclose()


async def test_a_move_that_takes_too_long_is_what_is_told(installation: Installation) -> None:
    gateway = opened(installation, "gateway")
    here, there = redis_keys.quota(TENANTS[2], "here"), redis_keys.quota(TENANTS[2], "there")
    both = "return redis.call('EXISTS', KEYS[1]) + redis.call('EXISTS', KEYS[2])"
    try:
        for key in (here, there):
            await gateway.hset(key, "x", "1")
        move = Move(installation, here)
        move.begin()
        move.carry(there)
        async with gateway.pipeline(transaction=False) as together, gateway.pipeline(transaction=True) as at_once:
            together.eval(both, 2, here, there)
            at_once.hget(there, "x")
            for call in (gateway.eval(both, 2, here, there), together.execute(), at_once.execute()):
                with pytest.raises(UNREACHABLE) as caught:
                    await call
                assert explain(caught.value) == "a slot of the Redis Cluster is still moving"
        move.carry()
        move.end()
        assert await gateway.eval(both, 2, here, there) == 2
    finally:
        await gateway.aclose()


async def test_scripts_are_known_again_after_a_node_forgot_them(installation: Installation) -> None:
    async with world(installation) as made:
        await made.until_whole(20)
        for node in installation.servers:
            node.ask("SCRIPT FLUSH")
        assert [await made.request(tenant) for tenant in TENANTS] == [True] * len(TENANTS)
        await made.until_settled(10)
        assert made.taking() == [REPLICA]
