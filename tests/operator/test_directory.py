"""Redis holds what was planned, soon and exactly, whatever becomes of it meanwhile; nothing is written for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId, TenantId
from hanmaru_contracts.redis_keys import ROUTES, ROUTES_VERSION, TENANTS, TENANTS_VERSION
from hanmaru_contracts.wire.directory import Table, routes_table, tenants_table
from hanmaru_operator.directory import Directory
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

pytestmark = pytest.mark.timeout(60)

Weights = Mapping[str, Mapping[ModelId, int]]
A_ROUTE: Weights = {"tiny": {ModelId("ml/tiny"): 100}}


def _tables(*tenants: str, routes: Weights = A_ROUTE, suspended: Sequence[str] = ()) -> dict[str, Table]:
    specs = {TenantId(name): TenantSpec(suspended=name in suspended) for name in tenants}
    return {"tenants": tenants_table(specs), "routes": routes_table(routes)}


@dataclass
class Bench:
    """A directory whose clock the test moves, and what it wrote."""

    operator: Redis
    admin: Redis
    clock_s: float = 100.0
    reachability: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory = Directory(
            self.operator, on_reachability=self.reachability.append, now=lambda: self.clock_s, poll_s=0.2
        )

    async def holds(self, tables: Mapping[str, Table]) -> bool:
        """Whether Redis holds both tables and nothing beside them."""
        try:
            return all([await self._holds(table) for table in tables.values()])
        except (OSError, TimeoutError):
            return False

    async def _holds(self, table: Table) -> bool:
        entries = {name.encode(): value.encode() for name, value in table.entries.items()}
        return await self.admin.hgetall(table.key) == entries and table.is_version(
            await self.admin.get(table.version_key)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Directory]:
        task = asyncio.create_task(self.directory.run())
        try:
            yield self.directory
        finally:
            while not task.done():  # before Python 3.12 redis-py can swallow a cancellation
                task.cancel()
                await asyncio.wait([task], timeout=0.1)

    async def writes(self) -> int:
        """Commands that change keys, since the server began."""
        commands = await self.admin.info("commandstats")
        names = ("hset", "hdel", "set", "del", "exec")
        return sum(commands.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


@pytest.fixture
def bench(operator_redis: Redis, admin_redis: Redis) -> Bench:
    return Bench(operator_redis, admin_redis)


async def _within(seconds: float, condition: Callable[[], Any]) -> float:
    """Seconds until it held; fails the test when that takes longer."""
    start = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(Exception):
                if await condition():
                    return time.monotonic() - start
            await asyncio.sleep(0.02)


async def test_what_is_wanted_is_written_whole(bench: Bench) -> None:
    tables = _tables("a", "b")
    bench.directory.want(**tables)
    await bench.directory.step()
    assert await bench.holds(tables)


async def test_before_anything_is_wanted_nothing_is_touched(bench: Bench) -> None:
    await bench.admin.hset(TENANTS, "a", "{}")
    await bench.admin.set(TENANTS_VERSION, "1")
    await bench.directory.step()
    assert await bench.admin.hgetall(TENANTS) == {b"a": b"{}"}


async def test_only_what_differs_is_written(bench: Bench) -> None:
    bench.directory.want(**_tables("a", "b", "c"))
    await bench.directory.step()
    before = await bench.admin.info("commandstats")
    tables = _tables("a", "b", "d", suspended=["b"])
    bench.directory.want(**tables)
    async with bench.admin.monitor() as monitor:
        await bench.directory.step()
        seen = []
        while not (seen and "SET" in seen[-1].split()[0]):
            seen.append((await monitor.next_command())["command"])
    assert await bench.holds(tables)
    assert [command for command in seen if command.startswith("HDEL")] == [f"HDEL {TENANTS} c"]
    [hset] = [command for command in seen if command.startswith("HSET")]
    assert hset.startswith(f"HSET {TENANTS} b ")
    assert " a {" not in hset
    assert ROUTES_VERSION not in " ".join(command for command in seen if command.startswith(("SET", "HSET")))
    assert before["cmdstat_exec"]["calls"] + 1 == (await bench.admin.info("commandstats"))["cmdstat_exec"]["calls"]


async def test_what_has_not_changed_is_not_written_again(bench: Bench) -> None:
    bench.directory.want(**_tables("a"))
    await bench.directory.step()
    writes = await bench.writes()
    for _ in range(5):
        bench.directory.want(**_tables("a"))
        await bench.directory.step()
    bench.directory.resync()
    await bench.directory.step()
    successor = Bench(bench.operator, bench.admin)
    successor.directory.want(**_tables("a"))
    await successor.directory.step()
    assert await bench.writes() == writes


@pytest.mark.parametrize("key", [TENANTS, ROUTES])
async def test_strays_go_on_start_and_gateways_are_told(bench: Bench, key: str) -> None:
    tables = _tables("a")
    await bench.admin.hset(key, "stray", "{}")
    bench.directory.want(**tables)
    await bench.directory.step()
    assert await bench.holds(tables)


async def test_strays_beside_our_version_go_on_resync_under_a_new_version(bench: Bench) -> None:
    tables = _tables("a")
    bench.directory.want(**tables)
    await bench.directory.step()
    before = await bench.admin.get(TENANTS_VERSION)
    await bench.admin.hset(TENANTS, "stray", "{}")
    bench.clock_s += 299
    await bench.directory.step()
    assert not await bench.holds(tables)
    bench.clock_s += 1
    await bench.directory.step()
    assert await bench.holds(tables)
    assert await bench.admin.get(TENANTS_VERSION) != before, "a gateway may have read the stray under the old one"


@pytest.mark.parametrize("half", [TENANTS, TENANTS_VERSION, ROUTES, ROUTES_VERSION])
async def test_half_of_a_table_is_restored_at_the_next_look(bench: Bench, half: str) -> None:
    tables = _tables("a")
    bench.directory.want(**tables)
    await bench.directory.step()
    await bench.admin.delete(half)
    await bench.directory.step()
    assert await bench.holds(tables)


async def test_anothers_version_is_mended_at_the_next_look(bench: Bench) -> None:
    tables = _tables("a")
    bench.directory.want(**tables)
    await bench.directory.step()
    await bench.admin.hset(TENANTS, "b", "{}")
    await bench.admin.set(TENANTS_VERSION, "another")
    await bench.directory.step()
    assert await bench.holds(tables)


async def test_nobody_left_empties_the_table_but_not_its_version(bench: Bench) -> None:
    bench.directory.want(**_tables("a"))
    await bench.directory.step()
    tables = _tables(routes={})
    bench.directory.want(**tables)
    await bench.directory.step()
    assert await bench.holds(tables)
    writes = await bench.writes()
    await bench.directory.step()
    assert await bench.writes() == writes


async def test_a_change_is_in_redis_within_two_seconds(bench: Bench) -> None:
    async with bench.running() as directory:
        directory.want(**_tables("a"))
        await _within(2, lambda: bench.holds(_tables("a")))
        for number in range(20):
            tables = _tables("a", f"b{number}")
            directory.want(**tables)
            assert await _within(2, lambda tables=tables: bench.holds(tables)) < 2


async def test_a_killed_redis_is_filled_again_within_ten_seconds_of_its_return(
    bench: Bench, redis_server: RedisServer
) -> None:
    async with bench.running() as directory:
        directory.want(**_tables("a"))
        await _within(2, lambda: bench.holds(_tables("a")))
        redis_server.stop()
        await _within(10, _async(lambda: not directory.is_reachable))
        changed = _tables("a", "b")
        directory.want(**changed)
        await asyncio.sleep(1)
        redis_server.start()
        assert await _within(10, lambda: bench.holds(changed)) < 10
        await _within(2, _async(lambda: directory.is_reachable))
    assert bench.reachability == [False, True]


async def test_a_redis_that_comes_back_empty_unnoticed_is_filled_within_ten_seconds(
    bench: Bench, redis_server: RedisServer
) -> None:
    async with bench.running() as directory:
        directory.want(**_tables("a"))
        await _within(2, lambda: bench.holds(_tables("a")))
        for how in ("restart", "flush"):
            if how == "restart":
                redis_server.restart_empty()
            else:
                await bench.admin.flushall()
            assert await _within(10, lambda: bench.holds(_tables("a"))) < 10


async def test_a_redis_that_hangs_holds_a_step_up_for_seconds_only(bench: Bench, redis_server: RedisServer) -> None:
    bench.directory.want(**_tables("a"))
    await bench.directory.step()
    redis_server.pause()
    bench.directory.want(**_tables("a", "b"))
    start = time.monotonic()
    await bench.directory.step()
    assert time.monotonic() - start < 5
    assert not bench.directory.is_reachable
    redis_server.resume()
    await bench.directory.step()
    assert bench.directory.is_reachable
    assert await bench.holds(_tables("a", "b"))


async def test_a_redis_emptied_between_look_and_write_never_holds_half_a_table_under_our_version(bench: Bench) -> None:
    async def empty_again_and_again() -> None:
        while not has_seen_enough.is_set():
            await bench.admin.delete(TENANTS, TENANTS_VERSION)
            await asyncio.sleep(0)

    has_seen_enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(empty_again_and_again())
        for number in range(100):
            tables = _tables("a", "b", f"c{number}")
            bench.directory.want(**tables)
            await bench.directory.step()
            async with bench.admin.pipeline(transaction=True) as pipe:
                pipe.get(TENANTS_VERSION)
                pipe.hgetall(TENANTS)
                version, held = await pipe.execute()
            assert version is None or len(held) == 3
        has_seen_enough.set()
    await bench.directory.step()
    assert await bench.holds(tables)


async def test_tenants_stay_while_no_operator_runs(bench: Bench) -> None:
    tables = _tables("a")
    async with bench.running() as directory:
        directory.want(**tables)
        await _within(2, lambda: bench.holds(tables))
    for key in (TENANTS, TENANTS_VERSION, ROUTES, ROUTES_VERSION):
        assert await bench.admin.ttl(key) == -1, "no lease"


async def test_the_routes_a_successor_finds_tell_who_owned_them(bench: Bench, redis_server: RedisServer) -> None:
    assert await bench.directory.held_routes() == {}
    bench.directory.want(**_tables("a"))
    await bench.directory.step()
    assert await Bench(bench.operator, bench.admin).directory.held_routes() == A_ROUTE
    redis_server.stop()
    with pytest.raises(HanmaruError) as caught:
        await bench.directory.held_routes()
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE


def _async(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def ask() -> bool:
        return condition()

    return ask
