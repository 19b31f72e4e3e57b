"""Limits admit a bucket and its refill, never more; what was reserved is settled exactly once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import Limit, ModelRef, TenantSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId, RequestId, TenantId
from hanmaru_contracts.redis_keys import quota, reservation, running
from hanmaru_gateway.admission.quota import Quota, matching_limits, most_output_tokens, tightest_context
from hanmaru_gateway.request import Identity, RateState, Reservation
from hanmaru_testing.redis_server import RedisServer
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

TENANT, MODEL = TenantId("a"), ModelId("default/k")
KEY = quota(TENANT, "default")
SCALE = 60_000
_ids = iter(range(10**9))


def _request() -> RequestId:
    return RequestId(f"req-{next(_ids):032x}")


def _identity(*limits: Limit, tenant: str = TENANT) -> Identity:
    return Identity(TenantId(tenant), TenantSpec(limits=limits), "key")


def _limit(
    requests: int | None = None,
    inputs: int | None = None,
    outputs: int | None = None,
    name: str = "default",
    models: Sequence[str] = (),
    concurrency: int | None = None,
    context: int | None = None,
) -> Limit:
    refs = tuple(ModelRef(namespace="default", name=model) for model in models)
    return Limit(
        name=name,
        models=refs,
        requests_per_minute=requests,
        input_tokens_per_minute=inputs,
        output_tokens_per_minute=outputs,
        concurrency=concurrency,
        context_tokens=context,
    )


async def _reserve(quotas: Quota, identity: Identity, inputs: int = 0, outputs: int = 0) -> Reservation:
    return await quotas.reserve(identity, MODEL, _request(), prompt_tokens=inputs, output_tokens=outputs)


async def _try(quotas: Quota, identity: Identity, inputs: int, outputs: int) -> Reservation | HanmaruError:
    try:
        return await _reserve(quotas, identity, inputs, outputs)
    except HanmaruError as error:
        return error


async def _refused(quotas: Quota, identity: Identity, inputs: int = 0, outputs: int = 0) -> HanmaruError:
    with pytest.raises(HanmaruError) as caught:
        await _reserve(quotas, identity, inputs, outputs)
    return caught.value


async def _let_pass(redis: Redis, ms: int, key: str = KEY) -> None:
    """As if the bucket had last been used so much earlier: the script looks at the difference alone."""
    if (at := await redis.hget(key, "at")) is not None:
        await redis.hset(key, "at", str(int(at) - ms))


async def test_without_limits_redis_is_not_asked() -> None:
    nowhere = Redis(host="127.0.0.1", port=1)
    quotas = Quota(nowhere)
    for identity in (_identity(), _identity(_limit()), _identity(_limit(requests=1, models=["other"]))):
        held = await _reserve(quotas, identity, 10**6, 10**6)
        assert (held.limits, held.rate) == ((), RateState())
        await quotas.settle(held, prompt_tokens=1, output_tokens=1)
    await nowhere.aclose()


async def test_a_minutes_worth_is_admitted_and_the_next_request_is_told_how_long_to_wait(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=3))
    for left in (2, 1, 0):
        rate = (await _reserve(quotas, identity)).rate
        assert (rate.limit_requests, rate.remaining_requests) == (3, left)
        assert rate.reset_requests_s == pytest.approx(20 * (3 - left), abs=2)
        assert (rate.limit_tokens, rate.remaining_tokens, rate.reset_tokens_s) == (None, None, None)
    error = await _refused(quotas, identity)
    assert error.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert error.retry_after_s == pytest.approx(20, abs=2)
    assert re.search(r"limit `default` has 0 of 3 requests a minute left, and this request needs 1", error.message)


async def test_a_reservation_that_is_sent_twice_is_charged_once(redis: Redis) -> None:
    """As when the connection broke before the answer came."""
    quotas, identity = Quota(redis), _identity(_limit(requests=3, inputs=100, outputs=100, concurrency=1))
    same = _request()
    once, twice = [await quotas.reserve(identity, MODEL, same, prompt_tokens=60, output_tokens=70) for _ in range(2)]
    assert once.rate.remaining_requests == twice.rate.remaining_requests == 2
    assert await redis.zcard(running(TENANT, "default")) == 1
    await quotas.settle(twice, prompt_tokens=60, output_tokens=0)
    assert (await _reserve(quotas, identity, 40, 100)).rate.remaining_requests == 1


async def test_after_the_wait_that_was_told_the_request_is_admitted(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=600))
    await _reserve(quotas, identity, 500)
    error = await _refused(quotas, identity, 400)
    assert error.retry_after_s == pytest.approx(30, abs=1)
    await _let_pass(redis, round(error.retry_after_s * 1000) - 1000)
    await _refused(quotas, identity, 400)
    await _let_pass(redis, 1000)
    await _reserve(quotas, identity, 400)


async def test_the_longest_of_all_waits_is_told(redis: Redis) -> None:
    quotas = Quota(redis)
    identity = _identity(_limit(inputs=60, name="small"), _limit(outputs=600, name="large"))
    await _reserve(quotas, identity, 60, 600)
    error = await _refused(quotas, identity, 30, 590)
    assert error.retry_after_s == pytest.approx(59, abs=1)
    assert "limit `large`" in error.message


async def test_every_limit_that_matches_counts_and_none_is_charged_unless_all_pass(redis: Redis) -> None:
    quotas = Quota(redis)
    identity = _identity(
        _limit(requests=100, name="all"),
        _limit(requests=2, name="k", models=["k", "l"]),
        _limit(requests=1, name="other", models=["x"]),
    )
    for _ in range(2):
        held = await _reserve(quotas, identity)
        assert held.limits == ("all", "k")
        assert held.rate.limit_requests == 2, "the tightest"
    before = await redis.hgetall(quota(TENANT, "all"))
    error = await _refused(quotas, identity)
    assert "limit `k`" in error.message
    assert await redis.hgetall(quota(TENANT, "all")) == before
    assert await redis.exists(quota(TENANT, "other")) == 0


@pytest.mark.parametrize(
    ("limit", "inputs", "outputs", "numbers"),
    [(_limit(inputs=100), 101, 0, ("101", "100")), (_limit(outputs=50), 0, 51, ("51", "50"))],
)
async def test_what_can_never_fit_is_refused_for_good_with_both_numbers(
    redis: Redis, limit: Limit, inputs: int, outputs: int, numbers: tuple[str, str]
) -> None:
    error = await _refused(Quota(redis), _identity(limit), inputs, outputs)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.retry_after_s is None
    assert all(number in error.message for number in numbers)
    assert await redis.exists(KEY) == 0


def test_the_most_output_a_request_can_reserve_is_the_tightest_matching_limit() -> None:
    identity = _identity(
        _limit(outputs=9, name="a"), _limit(outputs=5, name="b", models=["x"]), _limit(inputs=1, name="c")
    )
    assert most_output_tokens(identity, MODEL) == 9
    assert most_output_tokens(identity, ModelId("default/x")) == 5
    assert most_output_tokens(_identity(_limit(inputs=1)), MODEL) is None


async def test_what_was_not_used_comes_back_and_what_was_used_beyond_is_charged(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=1000, outputs=1000))
    held = await _reserve(quotas, identity, 100, 500)
    await quotas.settle(held, prompt_tokens=100, output_tokens=20)
    assert int(await redis.hget(KEY, "input")) == 900 * SCALE
    assert int(await redis.hget(KEY, "output")) == 980 * SCALE
    held = await _reserve(quotas, identity, 0, 900)
    await quotas.settle(held, prompt_tokens=0, output_tokens=2000)
    error = await _refused(quotas, identity, 0, 1)
    assert error.retry_after_s == pytest.approx(61, abs=1), "a debt of 1,020 tokens at 1,000 a minute"


async def test_settling_for_nothing_restores_exactly(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=997, outputs=13))
    held = await _reserve(quotas, identity, 501, 7)
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert await redis.hmget(KEY, "input", "output") == [str(997 * SCALE).encode(), str(13 * SCALE).encode()]


async def test_a_reservation_is_settled_once_whoever_tries(redis: Redis) -> None:
    identity = _identity(_limit(inputs=1000))
    held = await _reserve(Quota(redis), identity, 1000)
    gateways = [Quota(redis) for _ in range(10)]
    await asyncio.gather(*(gateway.settle(held, prompt_tokens=900, output_tokens=0) for gateway in gateways))
    await gateways[0].settle_many([(held, 900, 0)] * 3)
    assert int(await redis.hget(KEY, "input")) == 100 * SCALE


async def test_a_reservation_that_is_gone_is_not_settled(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=1000))
    held = await _reserve(quotas, identity, 1000)
    await redis.delete(reservation(TENANT, held.request))  # as its expiry does
    before = await redis.hgetall(KEY)
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert await redis.hgetall(KEY) == before


async def test_reservations_expire_before_the_buckets_they_charged(redis: Redis, redis_server: RedisServer) -> None:
    held = await _reserve(Quota(redis, reservation_life_s=50), _identity(_limit(inputs=1000)), 1)
    with redis_server.client() as all_powerful:
        life_ms = all_powerful.pttl(reservation(TENANT, held.request))
        bucket_ms = all_powerful.pttl(KEY)
    assert 40_000 < life_ms <= 50_000
    assert life_ms < bucket_ms <= 110_000


async def test_many_settle_in_one_exchange_even_when_redis_forgot_the_script(
    redis: Redis, redis_server: RedisServer
) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=1000))
    held = [await _reserve(quotas, identity, 100) for _ in range(5)]
    with redis_server.client() as all_powerful:
        all_powerful.script_flush()
    assert await quotas.settle_many([(one, 40, 0) for one in held]) == [None] * 5
    assert int(await redis.hget(KEY, "input")) == pytest.approx(800 * SCALE, rel=0.01)


async def test_a_restarted_redis_starts_with_full_buckets(redis: Redis, redis_server: RedisServer) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=1))
    held = await _reserve(quotas, identity)
    redis_server.restart_empty()
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert await redis.exists(KEY) == 0
    await _reserve(quotas, identity)


@pytest.mark.parametrize("ahead_ms", [1, 3_600_000])
async def test_a_clock_that_jumps_back_refills_nothing_and_stops_nothing(redis: Redis, ahead_ms: int) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=2))
    await _reserve(quotas, identity)
    await _let_pass(redis, -ahead_ms)
    assert (await _reserve(quotas, identity)).rate.remaining_requests == 0
    await _let_pass(redis, 30_000)
    await _reserve(quotas, identity)


async def test_a_clock_that_jumps_back_does_not_lock_an_empty_bucket(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=1))
    await _reserve(quotas, identity)
    await _let_pass(redis, -3_600_000)
    assert (await _refused(quotas, identity)).retry_after_s == pytest.approx(60, abs=1)
    await _let_pass(redis, 60_000)
    await _reserve(quotas, identity)


async def test_a_long_pause_fills_a_bucket_once(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=2))
    await _reserve(quotas, identity)
    await _let_pass(redis, 10**9)
    assert (await _reserve(quotas, identity)).rate.remaining_requests == 1


async def test_a_lowered_limit_holds_at_once_and_a_new_unit_starts_full(redis: Redis) -> None:
    quotas = Quota(redis)
    held = await _reserve(quotas, _identity(_limit(inputs=1000)), 10)
    await quotas.settle(held, prompt_tokens=0, output_tokens=500)
    rate = (await _reserve(quotas, _identity(_limit(inputs=50, outputs=70)), 10, 1)).rate
    assert (rate.limit_tokens, rate.remaining_tokens) == (50, 40)
    assert int(await redis.hget(KEY, "output")) == 69 * SCALE


async def test_the_largest_limit_is_counted_exactly(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(inputs=10**11))
    held = await _reserve(quotas, identity, 1)
    assert int(await redis.hget(KEY, "input")) == (10**11 - 1) * SCALE
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert int(await redis.hget(KEY, "input")) == 10**11 * SCALE


async def test_of_many_at_once_exactly_a_buckets_worth_is_admitted(redis: Redis) -> None:
    gateways, identity = [Quota(redis) for _ in range(4)], _identity(_limit(requests=1000, outputs=100))
    outcomes = await asyncio.gather(
        *(_reserve(gateways[i % 4], identity, 0, 10) for i in range(60)), return_exceptions=True
    )
    admitted = [outcome for outcome in outcomes if isinstance(outcome, Reservation)]
    assert len(admitted) in (10, 11), "11 where the machine took six seconds over it"


async def test_tenants_do_not_share_buckets(redis: Redis) -> None:
    quotas = Quota(redis)
    await _reserve(quotas, _identity(_limit(requests=1)))
    await _reserve(quotas, _identity(_limit(requests=1), tenant="b"))


def test_the_keys_of_one_tenant_share_a_slot() -> None:
    tags = {
        key[key.index("{") : key.index("}")]
        for key in (quota(TENANT, "x"), running(TENANT, "y"), reservation(TENANT, _request()))
    }
    assert len(tags) == 1


# --- Requests at the same time -------------------------------------------------------------------------------------


async def test_so_many_run_at_once_and_the_next_is_told_to_come_again(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(concurrency=2))
    first = await _reserve(quotas, identity)
    await _reserve(quotas, identity)
    error = await _refused(quotas, identity)
    assert error.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert error.retry_after_s == 1.0
    assert "limit `default` allows 2 requests at the same time" in error.message
    await quotas.settle(first, prompt_tokens=0, output_tokens=0)
    await _reserve(quotas, identity)


async def test_a_place_that_comes_back_a_moment_later_refuses_nobody(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(concurrency=1))
    held = await _reserve(quotas, identity)
    waiting = asyncio.create_task(_reserve(quotas, identity))
    await asyncio.sleep(0.03)  # as long as settlements are gathered, and a little
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert (await waiting).places == ("default",)


async def test_every_limit_counts_its_own_places_and_a_refusal_takes_none(redis: Redis) -> None:
    quotas = Quota(redis)
    identity = _identity(
        _limit(name="all", concurrency=3, requests=100),
        _limit(name="k", models=["k"], concurrency=1, inputs=1000),
        _limit(name="other", models=["x"], concurrency=1),
    )
    held = await _reserve(quotas, identity, 10)
    assert held.places == ("all", "k")
    before = await redis.hgetall(quota(TENANT, "all"))
    assert "limit `k` allows 1" in (await _refused(quotas, identity, 10)).message
    assert await redis.zcard(running(TENANT, "all")) == 1
    assert await redis.hgetall(quota(TENANT, "all")) == before
    await quotas.settle(held, prompt_tokens=10, output_tokens=0)
    await quotas.settle(held, prompt_tokens=10, output_tokens=0)
    assert await redis.exists(running(TENANT, "all"), running(TENANT, "k")) == 0


async def test_a_bucket_that_is_empty_for_longer_than_a_place_is_what_is_told(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=1, concurrency=1))
    await _reserve(quotas, identity)
    error = await _refused(quotas, identity)
    assert "requests a minute left" in error.message
    assert error.retry_after_s == pytest.approx(60, abs=2)


async def test_places_of_a_gateway_that_died_lapse_and_those_of_a_living_one_do_not(redis: Redis) -> None:
    dead, alive = Quota(redis, place_life_s=0.4), Quota(redis, place_life_s=0.4)
    await _reserve(dead, _identity(_limit(concurrency=1)))
    running_on = await _reserve(alive, _identity(_limit(concurrency=1), tenant="b"))
    for _ in range(3):
        await asyncio.sleep(0.2)
        await alive.renew_places()
    await _reserve(alive, _identity(_limit(concurrency=1)))
    await _refused(dead, _identity(_limit(concurrency=1), tenant="b"))
    alive.ended(running_on)
    await alive.settle(running_on, prompt_tokens=0, output_tokens=0)
    await _reserve(dead, _identity(_limit(concurrency=1), tenant="b"))


async def test_a_settled_request_is_not_renewed(redis: Redis) -> None:
    quotas, identity = Quota(redis), _identity(_limit(concurrency=1))
    held = await _reserve(quotas, identity)
    await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    await quotas.renew_places()  # nobody said yet that it ended
    assert await redis.exists(running(TENANT, "default")) == 0


async def test_of_many_at_once_no_more_than_the_places_run(redis: Redis) -> None:
    gateways, identity = [Quota(redis) for _ in range(4)], _identity(_limit(concurrency=7))
    outcomes = await asyncio.gather(*(_try(gateways[i % 4], identity, 0, 0) for i in range(60)))
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 7


def test_the_smallest_context_of_the_limits_that_match_bounds_a_request() -> None:
    identity = _identity(_limit(context=900, name="a"), _limit(context=500, name="b"), _limit(inputs=1, name="c"))
    tightest = tightest_context(identity, MODEL)
    assert tightest is not None
    assert tightest.name == "b"
    assert tightest_context(_identity(_limit(context=5, models=["x"])), MODEL) is None
    assert matching_limits(_identity(_limit(context=5)), MODEL) == [], "nothing is charged for it"


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_without_redis_nothing_is_admitted_and_it_is_said_within_two_seconds(
    redis: Redis, redis_server: RedisServer, fault: str
) -> None:
    quotas, identity = Quota(redis), _identity(_limit(requests=5))
    held = await _reserve(quotas, identity)
    getattr(redis_server, fault)()
    start = time.monotonic()
    error = await _refused(quotas, identity)
    with pytest.raises(HanmaruError) as settling:
        await quotas.settle(held, prompt_tokens=0, output_tokens=0)
    assert time.monotonic() - start < 2.0
    assert error.code is settling.value.code is ErrorCode.STORE_UNAVAILABLE
    assert error.retry_after_s
    if fault == "stop":
        redis_server.start()
    redis_server.resume()
    await _reserve(quotas, identity)


async def test_an_answer_that_came_too_late_is_not_taken_for_the_next_ones(
    redis: Redis, redis_server: RedisServer
) -> None:
    quotas = Quota(redis, timeout_s=0.2)
    await _reserve(quotas, _identity(_limit(requests=7)))
    redis_server.pause()
    assert (await _refused(quotas, _identity(_limit(requests=7)))).code is ErrorCode.STORE_UNAVAILABLE
    redis_server.resume()
    rate = (await _reserve(quotas, _identity(_limit(inputs=500), tenant="b"), 100)).rate
    assert (rate.limit_tokens, rate.remaining_tokens) == (500, 400)


# Invariant, over any order of reserving, settling and waiting. Time passes by `_let_pass`, and a little by itself.

_reserving = st.tuples(st.just("reserve"), st.integers(0, 30), st.integers(0, 30))
_settling = st.tuples(st.just("settle"), st.integers(0, 40), st.integers(0, 40))
_waiting = st.tuples(st.just("wait"), st.sampled_from([1, 999, 10_000, 30_000, 90_000, -50_000]), st.just(0))


@settings(max_examples=100, deadline=None)
@given(
    inputs=st.integers(30, 60),
    outputs=st.integers(30, 60),
    steps=st.lists(_reserving | _reserving | _settling | _waiting, min_size=10, max_size=40),
)
def test_admission_never_exceeds_bucket_and_refill_and_never_refuses_what_fits(
    shared_redis_server: RedisServer, inputs: int, outputs: int, steps: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_run(shared_redis_server, inputs, outputs, steps))


async def _run(server: RedisServer, inputs: int, outputs: int, steps: list[tuple[str, int, int]]) -> None:
    identity = replace(_identity(_limit(inputs=inputs, outputs=outputs)), tenant=TenantId(f"h{next(_ids)}"))
    key = quota(identity.tenant, "default")
    rates = (inputs, outputs)
    # Levels between which the true one lies: without the time that passes by itself, and with all of it.
    low, high = [rate * SCALE for rate in rates], [rate * SCALE for rate in rates]
    waited_ms = 0  # since the last admission
    held: list[Reservation] = []
    start = time.monotonic()
    async with Redis(host="127.0.0.1", port=server.port) as redis:
        quotas = Quota(redis)
        for what, a, b in steps:
            if what == "wait" and await redis.exists(key):
                await _let_pass(redis, a, key)
                waited_ms += a
            elif what == "settle" and held:
                one = held.pop()
                await quotas.settle(one, prompt_tokens=a, output_tokens=b)
                back = ((one.prompt_tokens - a) * SCALE, (one.output_tokens - b) * SCALE)
                low, high = _plus(low, back), _plus(high, back)
            elif what == "reserve" and a <= inputs and b <= outputs:
                waited_ms = max(0, waited_ms)  # a clock that ran backwards is forgotten
                needs = (a * SCALE, b * SCALE)
                outcome = await _try(quotas, identity, a, b)
                by_itself_ms = round((time.monotonic() - start) * 1000) + 5
                at_least, at_most = _refilled(low, rates, waited_ms), _refilled(high, rates, waited_ms + by_itself_ms)
                if isinstance(outcome, HanmaruError):
                    assert outcome.code is ErrorCode.RATE_LIMIT_EXCEEDED
                    assert min(_minus(at_least, needs)) < 0, "refused what fits"
                else:
                    assert min(_minus(at_most, needs)) >= 0, "admitted too much"
                    held.append(outcome)
                    low, high, waited_ms = _minus(at_least, needs), _minus(at_most, needs), 0


def _plus(levels: list[int], more: Sequence[int]) -> list[int]:
    return [level + change for level, change in zip(levels, more, strict=True)]


def _minus(levels: list[int], less: Sequence[int]) -> list[int]:
    return [level - change for level, change in zip(levels, less, strict=True)]


def _refilled(levels: list[int], rates: Sequence[int], elapsed_ms: int) -> list[int]:
    return [min(rate * SCALE, level + elapsed_ms * rate) for level, rate in zip(levels, rates, strict=True)]
