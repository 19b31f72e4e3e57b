"""A tenant's limits: token buckets in Redis, charged for the worst case before a request runs, corrected after it.

Each limit of a tenant holds up to three buckets (requests, input tokens, output tokens). A bucket holds one minute's
worth and refills evenly; a tenant nobody has seen for a while has full ones. One script call checks every limit that
matches the model and charges all of them or none, by Redis's clock. Over any time, what is admitted is at most one
bucket and what refilled meanwhile.

The worst case is what `reserve` is told: the prompt's tokens, and the output tokens the engine is allowed to make (for
all of `n` together). A request that does not say how many it wants should be allowed `most_output_tokens` at most,
so that it fits; one that asks for more than a bucket can ever hold is refused for good. `settle` gives back what was
not used and charges what was used beyond. It happens once: whoever deletes the reservation's key settles it. A
reservation that nobody settles expires, and its buckets have long refilled by then.

A limit on requests that run at the same time is a set of places. A request takes one with the same call, and gives it
back when it is settled; `run` renews the places of this process's requests, so that those of a gateway that died lapse
by themselves. A place is given back a moment after the caller has its answer, so a full set is asked again shortly
before anybody is refused.

Exact in whole numbers: a level counts tokens times 60,000, so that a limit of r a minute refills r units a millisecond.
Without limits there is no call to Redis, so a tenant without limits does not notice here that Redis is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from hanmaru_contracts.crd.v1alpha1.tenant import Limit
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId, RequestId
from hanmaru_contracts.redis_keys import quota, reservation, running
from hanmaru_redis import UNREACHABLE, Redis
from hanmaru_redis.cluster import shard_of

from hanmaru_gateway.admission.script_lane import GROUP, Script, ScriptLane
from hanmaru_gateway.request import Identity, RateState, Reservation

CALL_TIMEOUT_S = 0.8
"""For one exchange with Redis."""
RESERVATION_LIFE_S = 3600.0
"""Longer than any request runs. Buckets live as long, so that a reservation never outlives the bucket it charged."""

PLACE_LIFE_S = 30.0
"""After its last renewal. A gateway that is killed holds its requests' places for so long."""
PLACE_RENEW_S = 10.0
_PLACE_PATIENCE_S = (0.05, 0.1)
"""Waits before asking again for a place: settlements are gathered for 20 ms before they are written."""

_T = TypeVar("_T")
_Call = tuple[list[str], list[int]]
"""Keys and arguments."""

_UNITS = ("requests", "input tokens", "output tokens")
_SCALE = 60_000
_MOST_PER_MINUTE = 10**11
"""Levels stay below 2**53, where Lua's numbers are exact."""
_RETRY_AFTER_S = 1.0
"""When Redis is gone, or when no place is free: nobody knows when a running request ends."""
_PLACES = 4
"""What stands for a unit in the answer of a script that found no place."""

# KEYS: the reservation, then a hash for each limit, then a set for each limit with places. ARGV: life in ms, what is
# needed of each unit, how many limits, life of a place in ms, then for each limit its rate a minute of each unit
# (0: unlimited), then the places of each set.
# Answer when charged: 1, then the new level for each limit and unit (0 where unlimited).
# Answer when not: 0, the wait in ms until everything needed is there, then limit (or set), unit (4: places) and level
# that take longest.
_RESERVE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local names = {'requests', 'input', 'output'}
local last = 1 + ARGV[5]
-- Sent twice, because the first answer was lost with its connection: it is charged already.
local charged = redis.call('EXISTS', KEYS[1]) == 1
local levels, wait, blocked = {}, 0, nil
for i = charged and #KEYS + 1 or last + 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  local running = redis.call('ZCARD', KEYS[i])
  if running >= tonumber(ARGV[6 + (last - 1) * 3 + i - last]) then
    wait = 1000
    blocked = {0, wait, i - last, 4, running}
  end
end
for i = 2, last do
  local kept = redis.call('HMGET', KEYS[i], 'at', 'requests', 'input', 'output')
  -- A clock that jumped back refills nothing but goes on from there; one that jumped ahead refills one bucket at most.
  local elapsed = now - (tonumber(kept[1]) or now)
  if elapsed < 0 then
    elapsed = 0
    redis.call('HSET', KEYS[i], 'at', string.format('%.0f', now))
  end
  for u = 1, 3 do
    local rate = tonumber(ARGV[6 + (i - 2) * 3 + u])
    local level = 0
    if rate > 0 then
      local need = charged and 0 or tonumber(ARGV[1 + u]) * 60000
      level = math.min(rate * 60000, (tonumber(kept[1 + u]) or rate * 60000) + elapsed * rate)
      local lacking = math.ceil((need - level) / rate)
      if lacking > wait and not charged then
        wait = lacking
        blocked = {0, wait, i - 1, u, level}
      end
      level = level - need
    end
    levels[#levels + 1] = level
  end
end
if blocked then return blocked end
if charged then
  table.insert(levels, 1, 1)
  return levels
end
for i = 2, last do
  local fields = {'at', string.format('%.0f', now)}
  for u = 1, 3 do
    if tonumber(ARGV[6 + (i - 2) * 3 + u]) > 0 then
      fields[#fields + 1] = names[u]
      fields[#fields + 1] = string.format('%.0f', levels[(i - 2) * 3 + u])
    end
  end
  redis.call('HSET', KEYS[i], unpack(fields))
  redis.call('PEXPIRE', KEYS[i], ARGV[1] + 60000)
end
for i = last + 1, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.0f', now + ARGV[6]), KEYS[1])
  redis.call('PEXPIRE', KEYS[i], ARGV[6])
end
redis.call('SET', KEYS[1], ARGV[3] .. ' ' .. ARGV[4], 'PX', ARGV[1])
table.insert(levels, 1, 1)
return levels
"""

# KEYS as above. ARGV: what to add to the levels of input and output, and how many limits. No clock: refilling before or
# after an addition gives the same level in the end, and the next reservation caps it.
_SETTLE = """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
local last = 1 + ARGV[3]
for i = last + 1, #KEYS do redis.call('ZREM', KEYS[i], KEYS[1]) end
for i = 2, last do
  local kept = redis.call('HMGET', KEYS[i], 'input', 'output')
  if kept[1] then redis.call('HINCRBY', KEYS[i], 'input', ARGV[1]) end
  if kept[2] then redis.call('HINCRBY', KEYS[i], 'output', ARGV[2]) end
end
return 1
"""


# KEYS: the reservation, then its sets. ARGV: life of a place in ms. What was settled meanwhile is left alone.
_RENEW = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.0f', now + ARGV[1]), KEYS[1])
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return 1
"""


_reserve = Script(_RESERVE)
_settle = Script(_SETTLE)
_renew = Script(_RENEW)


class Quota:
    """Charges tenants' limits in one Redis."""

    def __init__(
        self,
        redis: Redis,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        reservation_life_s: float = RESERVATION_LIFE_S,
        place_life_s: float = PLACE_LIFE_S,
    ) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._life_ms = math.ceil(reservation_life_s * 1000)
        self._place_life_ms = math.ceil(place_life_s * 1000)
        self._in_places: dict[RequestId, Reservation] = {}
        self._lanes: dict[Hashable, ScriptLane] = {}
        """For each node of a cluster one: whose node hangs must not hold up the others."""

    async def reserve(
        self, identity: Identity, model: ModelId, request: RequestId, *, prompt_tokens: int, output_tokens: int
    ) -> Reservation:
        """Charge the worst case of one request to every limit of its tenant that counts `model`.

        Raises HanmaruError: INVALID_REQUEST when it can never fit, RATE_LIMIT_EXCEEDED when it does not fit now (with
        the time until it will), STORE_UNAVAILABLE. Then nothing is charged; only a Redis that answers too late may
        have charged it, until the buckets refill.
        """
        assert prompt_tokens >= 0
        assert output_tokens >= 0
        limits = matching_limits(identity, model)
        if not limits:
            return Reservation(identity.tenant, model, request, prompt_tokens, output_tokens, (), RateState())
        needs = (1, prompt_tokens, output_tokens)
        for limit in limits:
            _require_that_it_can_fit(limit, needs)
        rates = [_rates(limit) for limit in limits]
        held = Reservation(
            identity.tenant,
            model,
            request,
            prompt_tokens,
            output_tokens,
            tuple(limit.name for limit in limits),
            RateState(),
            places_of(limits),
        )
        bounds = [limit.concurrency for limit in limits if limit.concurrency is not None]
        arguments = [
            *(self._life_ms, *needs, len(limits), self._place_life_ms),
            *(rate for three in rates for rate in three),
            *bounds,
        ]
        answer = await self._charge(_keys(held), arguments)
        if answer[0] == 0:
            _, wait_ms, number, unit, level = answer
            if unit == _PLACES:
                raise _no_place(held.places[number - 1], bounds[number - 1])
            raise _exceeded(limits[number - 1], unit - 1, needs, level, wait_ms)
        held = replace(held, rate=_rate_state(rates, answer[1:]))
        if held.places:
            self._in_places[request] = held
        return held

    async def _charge(self, keys: list[str], arguments: list[int]) -> list[int]:
        """The script's answer; no free place is an answer only after a little patience."""
        lane = self._lane(keys[0])
        for patience_s in (*_PLACE_PATIENCE_S, None):
            answer = cast("list[int]", await self._within_deadline(lane.call(keys, arguments)))
            if answer[0] == 1 or answer[3] != _PLACES or patience_s is None:
                break
            await asyncio.sleep(patience_s)
        return answer

    def _lane(self, key: str) -> ScriptLane:
        shard = shard_of(self._redis, key)
        if shard not in self._lanes:
            self._lanes[shard] = ScriptLane(self._redis, _reserve, timeout_s=self._timeout_s)
        return self._lanes[shard]

    def ended(self, held: Reservation) -> None:
        """The request runs no more; its places are renewed no longer. It is still to be settled."""
        self._in_places.pop(held.request, None)

    async def run(self) -> None:
        """Renew the places of running requests, until cancelled; a Redis that is away is waited out."""
        while True:
            await asyncio.sleep(PLACE_RENEW_S)
            with contextlib.suppress(HanmaruError):
                await self.renew_places()

    async def renew_places(self) -> None:
        """Keep the places of all running requests for another while. Raises STORE_UNAVAILABLE: not all are kept."""
        shares: dict[Hashable, list[_Call]] = {}
        for held in self._in_places.values():
            call = [reservation(held.tenant, held.request), *_place_keys(held)], [self._place_life_ms]
            shares.setdefault(self.shard(held), []).append(call)
        for failures in await asyncio.gather(*(self._renew_share(share) for share in shares.values())):
            for failure in failures:
                raise failure

    async def _renew_share(self, calls: Sequence[_Call]) -> list[HanmaruError]:
        ends = [await self._call_many(_renew, calls[first : first + GROUP]) for first in range(0, len(calls), GROUP)]
        return [end for group in ends for end in group if end is not None]

    async def settle(self, held: Reservation, *, prompt_tokens: int, output_tokens: int) -> None:
        """Replace what `held` charged by what was used. A second call does nothing. Raises STORE_UNAVAILABLE."""
        if held.limits:
            (failure,) = await self.settle_many([(held, prompt_tokens, output_tokens)])
            if failure is not None:
                raise failure

    async def settle_many(self, used: Sequence[tuple[Reservation, int, int]]) -> list[HanmaruError | None]:
        """Settle several that have limits, and share a shard, in one exchange: (reservation, prompt tokens, output
        tokens) each. What each failed with (STORE_UNAVAILABLE), None for those that are settled.
        """
        calls = [
            (
                _keys(held),
                [
                    (held.prompt_tokens - prompt) * _SCALE,
                    (held.output_tokens - output) * _SCALE,
                    len(held.limits),
                ],
            )
            for held, prompt, output in used
        ]
        return await self._call_many(_settle, calls)

    def shard(self, held: Reservation) -> Hashable:
        """What is the same for reservations that fail together, as far as is known."""
        return shard_of(self._redis, reservation(held.tenant, held.request))

    async def _call_many(self, script: Script, calls: Sequence[_Call]) -> list[HanmaruError | None]:
        """What each call failed with."""
        try:
            answers = await self._within_deadline(script.call_many(self._redis, calls))
        except HanmaruError as error:
            return [error] * len(calls)
        return [_unavailable(answer) if isinstance(answer, Exception) else None for answer in answers]

    async def _within_deadline(self, exchange: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await exchange
        except UNREACHABLE as error:
            raise _unavailable(error) from error


def matching_limits(identity: Identity, model: ModelId) -> list[Limit]:
    """The tenant's limits that count requests to `model` and bound anything that is counted."""
    return [limit for limit in _limits_on(identity, model) if any(_rates(limit)) or limit.concurrency is not None]


def places_of(limits: Sequence[Limit]) -> tuple[str, ...]:
    """Those of the limits in which a request takes a place."""
    return tuple(limit.name for limit in limits if limit.concurrency is not None)


def tightest_context(identity: Identity, model: ModelId) -> Limit | None:
    """The limit with the smallest context that counts requests to `model`; None where no limit has one."""
    bounding = [limit for limit in _limits_on(identity, model) if limit.context_tokens is not None]
    return min(bounding, key=lambda limit: limit.context_tokens or 0, default=None)


def most_output_tokens(identity: Identity, model: ModelId) -> int | None:
    """The most output tokens one request can ever reserve (all of `n` together); None where nothing bounds them."""
    return min((rate for limit in matching_limits(identity, model) if (rate := _rates(limit)[2])), default=None)


def _limits_on(identity: Identity, model: ModelId) -> list[Limit]:
    return [limit for limit in identity.spec.limits if not limit.models or any(ref.id == model for ref in limit.models)]


def _keys(held: Reservation) -> list[str]:
    return [
        reservation(held.tenant, held.request),
        *(quota(held.tenant, name) for name in held.limits),
        *_place_keys(held),
    ]


def _place_keys(held: Reservation) -> list[str]:
    return [running(held.tenant, name) for name in held.places]


def _rates(limit: Limit) -> tuple[int, int, int]:
    """A minute's worth of each unit, 0 for unlimited."""
    bounds = (limit.requests_per_minute, limit.input_tokens_per_minute, limit.output_tokens_per_minute)
    requests, inputs, outputs = (min(bound or 0, _MOST_PER_MINUTE) for bound in bounds)
    return requests, inputs, outputs


def _require_that_it_can_fit(limit: Limit, needs: tuple[int, int, int]) -> None:
    for unit, need, rate in zip(_UNITS, needs, _rates(limit), strict=True):
        if rate and need > rate:
            remedy = "ask for fewer (max_tokens times n)" if unit == _UNITS[2] else "shorten the prompt"
            raise HanmaruError(
                ErrorCode.INVALID_REQUEST,
                f"the request may need {need} {unit}, and limit `{limit.name}` never allows more than {rate} a "
                f"minute; {remedy}",
                param="max_tokens" if unit == _UNITS[2] else None,
            )


def _unavailable(error: Exception) -> HanmaruError:
    return HanmaruError(
        ErrorCode.STORE_UNAVAILABLE,
        f"limits cannot be checked now ({type(error).__name__}); try again",
        retry_after_s=_RETRY_AFTER_S,
    )


def _exceeded(limit: Limit, unit: int, needs: tuple[int, int, int], level: int, wait_ms: int) -> HanmaruError:
    wait_s = wait_ms / 1000
    return HanmaruError(
        ErrorCode.RATE_LIMIT_EXCEEDED,
        f"limit `{limit.name}` has {max(0, level // _SCALE)} of {_rates(limit)[unit]} {_UNITS[unit]} a minute left, "
        f"and this request needs {needs[unit]}; try again in {wait_s:.1f} s",
        retry_after_s=wait_s,
    )


def _no_place(limit: str, places: int) -> HanmaruError:
    return HanmaruError(
        ErrorCode.RATE_LIMIT_EXCEEDED,
        f"limit `{limit}` allows {places} requests at the same time, and so many run; try again when one has ended",
        retry_after_s=_RETRY_AFTER_S,
    )


@dataclass(frozen=True, slots=True)
class _Bucket:
    counts_requests: bool
    rate: int
    level: int

    @property
    def left(self) -> int:
        return max(0, self.level // _SCALE)

    @property
    def reset_s(self) -> float:
        """Until it is full."""
        return (self.rate * _SCALE - self.level) / self.rate / 1000


def _rate_state(rates: Sequence[tuple[int, int, int]], levels: Sequence[int]) -> RateState:
    """The buckets with the least left: one for requests, one for tokens of either direction."""
    flat = [(position % 3, rate) for position, rate in enumerate(rate for three in rates for rate in three)]
    buckets = [_Bucket(unit == 0, rate, level) for (unit, rate), level in zip(flat, levels, strict=True) if rate]
    requests = min((b for b in buckets if b.counts_requests), key=lambda b: b.level, default=None)
    tokens = min((b for b in buckets if not b.counts_requests), key=lambda b: b.level, default=None)
    return RateState(*_told(requests), *_told(tokens))


def _told(bucket: _Bucket | None) -> tuple[int | None, int | None, float | None]:
    return (bucket.rate, bucket.left, bucket.reset_s) if bucket else (None, None, None)
