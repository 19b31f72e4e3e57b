"""Calls that wait for an exchange leave together, each gets its own answer, and none outlives who asked."""

from __future__ import annotations

import asyncio

import pytest
from hanmaru_gateway.admission.script_lane import Script, ScriptLane
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

COUNT = Script(
    "if ARGV[1] == '13' then return redis.error_reply('unlucky') end return redis.call('HINCRBY', KEYS[1], 'n', 1)"
)
KEY = "hm:{t:a}:count"


def lane(redis: Redis, timeout_s: float = 5.0) -> ScriptLane:
    return ScriptLane(redis, COUNT, timeout_s=timeout_s)


async def test_of_many_calls_at_once_each_gets_its_own_answer(redis: Redis) -> None:
    calls = lane(redis)
    answers = await asyncio.gather(*(calls.call([KEY], [0]) for _ in range(300)))
    assert sorted(answers) == list(range(1, 301))


async def test_calls_that_wait_share_a_connection(redis: Redis, redis_server: RedisServer) -> None:
    calls = lane(redis)
    await asyncio.gather(*(calls.call([KEY], [0]) for _ in range(300)))
    with redis_server.client() as owner:
        assert len([c for c in owner.client_list() if c["user"] == "gateway"]) <= 2


async def test_an_error_of_one_call_is_that_calls_alone(redis: Redis) -> None:
    calls = lane(redis)
    answers = await asyncio.gather(*(calls.call([KEY], [n]) for n in range(20)), return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, ResponseError)] == [13]
    assert await redis.hget(KEY, "n") == b"19"


async def test_a_call_given_up_while_it_waits_is_never_made(redis: Redis) -> None:
    calls = lane(redis)
    first = asyncio.create_task(calls.call([KEY], [0]))
    await asyncio.sleep(0)  # the first one's exchange has begun
    waiting = [asyncio.create_task(calls.call([KEY], [0])) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert await redis.hget(KEY, "n") == b"5"


async def test_a_redis_that_forgot_the_script_learns_it_again_within_a_group(
    redis: Redis, redis_server: RedisServer
) -> None:
    calls = lane(redis)
    await calls.call([KEY], [0])
    with redis_server.client() as owner:
        owner.script_flush()
    assert sorted(await asyncio.gather(*(calls.call([KEY], [0]) for _ in range(10)))) == list(range(2, 12))


async def test_a_lost_redis_fails_everyone_who_waits_and_a_new_one_serves_again() -> None:
    with RedisServer() as server:
        redis = Redis.from_url(server.url)
        try:
            calls = lane(redis)
            await calls.call([KEY], [0])
            server.stop()
            lost = await asyncio.gather(*(calls.call([KEY], [0]) for _ in range(10)), return_exceptions=True)
            assert all(isinstance(answer, RedisError | OSError) for answer in lost)
            server.start()
            assert await calls.call([KEY], [0]) == 1
        finally:
            await redis.aclose()


async def test_a_redis_that_hangs_holds_nobody_longer_than_the_bound() -> None:
    with RedisServer() as server:
        redis = Redis.from_url(server.url)
        try:
            calls = lane(redis, timeout_s=0.2)
            await calls.call([KEY], [0])
            server.pause()
            leader = asyncio.create_task(calls.call([KEY], [0]))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(calls.call([KEY], [0])) for _ in range(3)]
            await asyncio.sleep(0)
            leader.cancel()  # its caller's deadline
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*waiting), 5)
            await asyncio.gather(*waiting, return_exceptions=True)
            server.resume()
            assert isinstance(await calls.call([KEY], [0]), int)
        finally:
            await redis.aclose()
