"""A whole gateway: how many requests of a tenant run at once, and how long one may be."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.names import TenantId
from hanmaru_contracts.redis_keys import running
from hanmaru_testing.gateway import Rig, eventually

pytestmark = pytest.mark.timeout(60)


async def _running(rig: Rig) -> int:
    return int(await rig.redis.zcard(running(TenantId("acme"), "default")))


async def _no_place_is_taken(rig: Rig) -> bool:
    return await _running(rig) == 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_place_is_held_until_its_stream_ends_or_its_caller_leaves(make_rig: Any, leaves: bool) -> None:
    async with make_rig(limits=[{"concurrency": 1}], script={"tokens": 1000, "token_interval_s": 0.02}) as rig:
        stream = await rig.chat(stream=True, max_tokens=1000 if leaves else 50)
        await stream.content.readany()
        async with await rig.chat(max_tokens=1) as refused:
            assert refused.status == 429
            assert refused.headers["Retry-After"] == "1"
            error = await rig.error_of(refused)
        assert error["code"] == "rate_limit_exceeded"
        assert "1 requests at the same time" in error["message"]
        if leaves:
            stream.close()
        else:
            assert b"[DONE]" in await stream.content.read()
        await eventually(lambda: _no_place_is_taken(rig))
        async with await rig.chat(max_tokens=1) as served:
            assert served.status == 200


async def test_one_request_after_another_never_meets_its_own_limit(make_rig: Any) -> None:
    async with make_rig(limits=[{"concurrency": 1}]) as rig:
        for _ in range(30):
            async with await rig.chat(max_tokens=1) as response:
                assert response.status == 200, await response.text()
                await response.read()


async def test_a_refused_request_and_a_failed_one_keep_no_place(make_rig: Any) -> None:
    async with make_rig(limits=[{"concurrency": 1}]) as rig:
        for fields in ({"max_tokens": 100_000}, {"stop_token_ids": [10_000_000]}, {"model": "none"}):
            async with await rig.chat(**fields) as response:
                assert response.status in (400, 404)
        await eventually(lambda: _no_place_is_taken(rig))
        async with await rig.chat() as response:
            assert response.status == 200


async def test_a_limit_on_the_context_refuses_what_is_longer_and_is_shown(make_rig: Any) -> None:
    limits = [{"contextTokens": 200}, {"name": "wide", "contextTokens": 100_000}]
    async with make_rig(limits=limits) as rig:
        async with rig.client.get("/v1/models") as response:
            assert [model["max_model_len"] for model in (await response.json())["data"]] == [200]
        async with await rig.chat(max_tokens=150) as response:
            assert response.status == 200
        async with await rig.chat(max_tokens=190) as response:
            assert response.status == 400
            error = await rig.error_of(response)
        assert error["code"] == "context_length_exceeded"
        assert "limit `default` allows a context of 200 tokens" in error["message"]
        async with await rig.chat() as response:
            assert response.status == 200, "what asks for no length is made to fit"
        assert rig.engine.requests[-1]["max_tokens"] < 200
