"""The tier's store on a real Redis, with its role's rights: bounds, lives, deadlines, and what neighbours may write."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from hanmaru_contracts.names import ModelId
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.settings import Access, access_to
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.redis_topologies import cluster
from hanmaru_worker.plugin.tier import scripts
from hanmaru_worker.plugin.tier.breaker import FAILURES, LONGEST_PAUSE_S, Breaker
from hanmaru_worker.plugin.tier.naming import Naming, PageName, PageShape, Ranks
from hanmaru_worker.plugin.tier.store import Frame, Limits, Store

pytestmark = pytest.mark.timeout(60)
NAMING = Naming(
    ModelId("default/k"), "0" * 32, Ranks(0, 1), PageShape("kv", "float32", 16, "page_first", 2, 1, 8, 8, 1000)
)
SIZE = 1000
SHORT = {"lookup_s": 1.0, "read_s": 1.0, "write_s": 1.0}
LIMITS = Limits(shard_bytes=5 * SIZE, life_ms=60_000, lookup_s=0.5, read_s=0.5, write_s=0.5)


def page(number: int, shard: int = 0) -> PageName:
    return NAMING.page(f"{shard:08x}{number:056x}")


def frame(number: int, shard: int = 0, size: int = SIZE) -> Frame:
    return Frame(page(number, shard), bytes([number % 256]) * size)


class Failures(list[str]):
    def count_failure(self, reason: str) -> None:
        self.append(reason)


@asynccontextmanager
async def store_of(
    access: Access,
    failures: Failures | None = None,
    limits: Limits = LIMITS,
    now: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Store]:
    failures = Failures() if failures is None else failures
    client = open_redis(access, "hanmaru-test", Patience(0.5, None))
    store = Store(client, limits, Breaker(now), failures.count_failure)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as admin:
        admin.flushall()
        admin.config_set("maxmemory", 0)
    return running


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


class Clock:
    """Seconds that pass when they are told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("tier.")]


def access(server: RedisServer, **changed: str) -> Access:
    given = {"user": "tier", "password": server.passwords["tier"]} | changed
    return access_to(server.url, given["user"], given["password"])


async def test_what_was_written_is_found_and_read(server: RedisServer) -> None:
    async with store_of(access(server)) as store:
        assert await store.write([frame(1), frame(2, shard=5)]) == [scripts.STORED, scripts.STORED]
        entries = [page(1).entry, page(2, 5).entry, page(3).entry]
        assert await store.look_up(entries, [SIZE] * 3) == [True, True, False]
        assert await store.read(entries, SIZE) == [frame(1).frame, frame(2, 5).frame, None]


async def test_a_page_that_nobody_reads_lapses_and_one_that_is_read_lives_on(server: RedisServer) -> None:
    async with store_of(access(server), limits=Limits(10 * SIZE, life_ms=400, **SHORT)) as store:
        await store.write([frame(1), frame(2)])
        for _ in range(4):
            await asyncio.sleep(0.2)
            await store.touch([page(1)], SIZE)
        assert await store.look_up([page(1).entry, page(2).entry], [SIZE] * 2) == [True, False]


async def test_lapsed_pages_are_not_counted_for_ever(server: RedisServer, admin: redis.Redis) -> None:
    async with store_of(access(server), limits=Limits(3 * SIZE, life_ms=100, **SHORT)) as store:
        await store.write([frame(1), frame(2), frame(3)])
        await asyncio.sleep(0.15)
        assert await store.write([frame(4)]) == [scripts.STORED]
        assert admin.get(page(4).used) == str(SIZE).encode()
        assert admin.zcard(page(4).index) == 1


@pytest.mark.parametrize("what", ["writes", "reads"])
async def test_a_shorter_life_forgets_no_page_that_lives_longer(
    server: RedisServer, admin: redis.Redis, what: str
) -> None:
    """Its index would lapse, and the shard would hold as much again beside it."""
    async with store_of(access(server)) as long:
        await long.write([frame(number) for number in range(5)])
    async with store_of(access(server), limits=replace(LIMITS, life_ms=50)) as short:
        if what == "writes":
            await short.write([frame(5)])
        else:
            await short.touch([page(1)], SIZE)
        await asyncio.sleep(0.2)
        for number in range(6, 12):
            assert await short.write([frame(number)]) == [scripts.STORED]
            assert len(list(admin.scan_iter("hm:{tier:*}:page:*"))) <= 5
    for books in (page(1).index, page(1).used):
        assert 0 < admin.pttl(books) <= LIMITS.life_ms


async def test_a_shard_never_takes_more_than_its_bound_and_lets_the_oldest_go(
    server: RedisServer, admin: redis.Redis
) -> None:
    async with store_of(access(server)) as store:
        for number in range(12):
            assert await store.write([frame(number)]) == [scripts.STORED]
            await store.touch([page(0)], SIZE)
            held = list(admin.scan_iter("hm:{tier:*}:page:*"))
            assert len(held) <= 5
            assert admin.get(page(0).used) == str(len(held) * SIZE).encode()
        found = await store.look_up([page(number).entry for number in range(12)], [SIZE] * 12)
        assert [number for number, is_there in enumerate(found) if is_there] == [0, 8, 9, 10, 11]


async def test_writing_a_page_again_does_not_count_it_twice(server: RedisServer, admin: redis.Redis) -> None:
    async with store_of(access(server)) as store:
        for _ in range(7):
            await store.write([frame(1), frame(2)])
        assert admin.get(page(1).used) == str(2 * SIZE).encode()


async def test_what_is_larger_than_the_bound_is_refused(server: RedisServer, admin: redis.Redis) -> None:
    async with store_of(access(server)) as store:
        assert await store.write([frame(1, size=5 * SIZE + 1)]) == [scripts.REFUSED_BY_BOUND]
        assert admin.dbsize() == 0


async def test_nothing_is_written_into_a_redis_that_is_nearly_full(server: RedisServer, admin: redis.Redis) -> None:
    used = int(admin.info("memory")["used_memory"])
    admin.config_set("maxmemory", int(used * 1.1))
    failures = Failures()
    async with store_of(access(server), failures) as store:
        assert await store.write([frame(1)]) == [scripts.REFUSED_BY_REDIS]
    assert not failures


async def test_a_redis_that_says_it_is_full_costs_the_page_alone(server: RedisServer, admin: redis.Redis) -> None:
    async with store_of(access(server)) as store:
        await store.write([frame(1)])
        admin.config_set("maxmemory", 1)
        assert await store.write([frame(2)]) == [scripts.REFUSED_BY_REDIS]
        assert await store.read([page(1).entry], SIZE) == [frame(1).frame]


async def test_a_read_holds_little_of_the_servers_memory_however_much_it_asks_for() -> None:
    """Answers that wait for their readers count against `maxmemory`: ten ranks' reads would stop all writes."""
    size, pages = 256 * 1024, 64
    with RedisServer(acl=True) as server, server.client() as admin:
        async with store_of(access(server), limits=Limits(pages * size, 60_000)) as store:
            for number in range(pages):
                assert await store.write([frame(number, size=size)]) == [scripts.STORED]
            held = int(admin.info("memory")["used_memory"])
            assert None not in await store.read([page(number).entry for number in range(pages)], size)
            assert int(admin.info("memory")["used_memory_peak"]) - held < 4 * 1024 * 1024


async def test_a_dropped_page_is_gone_and_no_longer_counted(server: RedisServer, admin: redis.Redis) -> None:
    async with store_of(access(server)) as store:
        await store.write([frame(1), frame(2)])
        await store.drop([page(1)], SIZE)
        assert await store.read([page(1).entry, page(2).entry], SIZE) == [None, frame(2).frame]
        assert admin.get(page(1).used) == str(SIZE).encode()


HOSTILE = {
    "too short": lambda admin: admin.set(page(1).entry, b"x" * (SIZE - 1)),
    "too long": lambda admin: admin.set(page(1).entry, b"x" * 1_000_000),
    "of another type": lambda admin: admin.rpush(page(1).entry, "x"),
    "empty": lambda admin: admin.set(page(1).entry, b""),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_something_else_under_a_pages_name_is_a_miss(server: RedisServer, admin: redis.Redis, what: str) -> None:
    async with store_of(access(server)) as store:
        await store.write([frame(2)])
        HOSTILE[what](admin)
        entries = [page(1).entry, page(2).entry]
        assert await store.look_up(entries, [SIZE] * 2) == [False, True]
        assert await store.read(entries, SIZE) == [None, frame(2).frame]


SPOILT = {
    "index of another type": lambda admin: (admin.delete(page(1).index), admin.set(page(1).index, "x")),
    "count of another type": lambda admin: (admin.delete(page(1).used), admin.rpush(page(1).used, "x")),
}
"""What a neighbour can do to the books that stops a shard's writes; its pages go on being read."""


@pytest.mark.parametrize("what", SPOILT)
async def test_spoilt_books_cost_the_writes_of_their_shard(server: RedisServer, admin: redis.Redis, what: str) -> None:
    async with store_of(access(server)) as store:
        await store.write([frame(1)])
        SPOILT[what](admin)
        assert await store.write([frame(2), frame(3, shard=1)]) == [None, scripts.STORED]
        assert await store.read([page(1).entry], SIZE) == [frame(1).frame]


MISLEADING = {
    "count of nonsense": lambda admin: admin.set(page(1).used, "nonsense"),
    "count far too low": lambda admin: admin.set(page(1).used, "-100000"),
    "count far too high": lambda admin: admin.set(page(1).used, "9" * 15),
    "a time far from all": lambda admin: admin.zadd(page(1).index, {"9:a": "+inf", "9:b": "-inf", "9:c": 1e300}),
    "members of nonsense": lambda admin: admin.zadd(page(1).index, {"nonsense": 1, "9:": 2, "x:y": 3, ":": 4}),
    "a member that is somebody else's key": lambda admin: admin.zadd(page(1).index, {"1000:hm:{tenants}:specs": 1}),
}


@pytest.mark.parametrize("what", MISLEADING)
async def test_books_that_mislead_are_mended_and_touch_nothing_else(
    server: RedisServer, admin: redis.Redis, what: str
) -> None:
    admin.set("hm:{tenants}:specs", "precious")
    async with store_of(access(server)) as store:
        await store.write([frame(number) for number in range(5)])
        MISLEADING[what](admin)
        for number in range(5, 25):
            assert await store.write([frame(number)]) == [scripts.STORED]
        assert len(list(admin.scan_iter("hm:{tier:*}:page:*"))) <= 11, "at most twice what the bound allows"
    assert admin.get("hm:{tenants}:specs") == b"precious"


REFUSED = {
    "password": ({"password": "wrong"}, "Redis refuses the user or the password"),
    "user": ({"user": "nobody"}, "Redis refuses the user or the password"),
    "role": ({"user": "worker"}, "Redis does not let this user run a command or see a key"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_with_the_wrong_login_all_calls_end_and_then_pause_and_the_log_says_why_once(
    server: RedisServer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed, said = REFUSED[what]
    if what == "role":
        changed = changed | {"password": server.passwords["worker"]}
    failures = Failures()
    async with store_of(access(server, **changed), failures) as store:
        for _ in range(FAILURES):
            assert await store.write([frame(1)]) == [None]
            assert await store.look_up([page(1).entry], [SIZE]) == [False]
    assert failures[:FAILURES] == ["unreachable"] * FAILURES
    assert failures[-1] == "paused"
    (lost,) = events(caplog)
    assert lost.startswith("tier.lost")
    assert said in lost
    assert server.passwords["worker"] not in lost


async def test_a_redis_that_hangs_costs_a_deadline_and_then_nothing(server: RedisServer) -> None:
    failures = Failures()
    async with store_of(access(server), failures) as store:
        await store.write([frame(1)])
        server.pause()
        try:
            began = time.monotonic()
            for _ in range(FAILURES):
                assert await store.read([page(1).entry], SIZE) == [None]
            assert time.monotonic() - began < FAILURES * LIMITS.read_s + 1
            began = time.monotonic()
            for _ in range(100):
                assert await store.look_up([page(1).entry], [SIZE]) == [False]
            assert time.monotonic() - began < 0.2
        finally:
            server.resume()
    assert failures == ["timeout"] * FAILURES + ["paused"] * 100


async def test_the_log_says_once_that_redis_is_lost_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    with RedisServer(acl=True) as server:
        async with store_of(access(server), now=clock) as store:
            server.stop()
            for _ in range(3 * FAILURES):
                await store.look_up([page(1).entry], [SIZE])
                clock.now_s += LONGEST_PAUSE_S
            server.start()
            for _ in range(3):
                await store.look_up([page(1).entry], [SIZE])
                clock.now_s += LONGEST_PAUSE_S
    lost, back = events(caplog)
    assert lost.startswith("tier.lost")
    assert "Redis cannot be reached" in lost
    assert back.startswith("tier.back")


async def test_a_redis_that_is_killed_in_the_midst_of_a_call_costs_that_call_and_comes_back() -> None:
    failures = Failures()
    with RedisServer(acl=True) as server:
        async with store_of(access(server), failures) as store:
            await store.write([frame(1)])
            server.pause()
            call = asyncio.create_task(store.read([page(1).entry], SIZE))
            await asyncio.sleep(0.1)
            server.stop()
            assert await call == [None]
            assert await store.write([frame(1)]) == [None]
            server.start()
            async with asyncio.timeout(10):
                while await store.write([frame(1)]) != [scripts.STORED]:  # noqa: ASYNC110 # its pause is time alone
                    await asyncio.sleep(0.1)
            assert await store.read([page(1).entry], SIZE) == [frame(1).frame]
    assert set(failures) <= {"unreachable", "timeout", "paused"}


async def test_the_nodes_of_a_cluster_share_the_pages(tmp_path: Path) -> None:
    with cluster(tmp_path) as installation:
        async with store_of(installation.access("tier")) as store:
            frames = [frame(number, shard=number) for number in range(8)]
            assert await store.write(frames) == [scripts.STORED] * 8
            entries = [one.name.entry for one in frames]
            assert await store.look_up(entries, [SIZE] * 8) == [True] * 8
            assert await store.read(entries, SIZE) == [one.frame for one in frames]


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "hm:models"),
        ("GET", "hm:{default/k}:worker:k-0"),
        ("SET", "hm:{default/k}:worker:k-0", "x"),
        ("HGETALL", "hm:{tenants}:specs"),
        ("EVAL", "return redis.call('GET', 'hm:{t:a}:quota:x')", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
    ],
    ids=" ".join,
)
def test_the_tiers_user_sees_nothing_but_pages(server: RedisServer, command: tuple[str, ...]) -> None:
    with server.client("tier") as client, pytest.raises(redis.ResponseError, match=r"(?i)permission|can.t access"):
        client.execute_command(*command)
