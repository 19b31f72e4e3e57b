"""What admission refuses is an OpenAI error naming the field, and no engine hears of it."""

from __future__ import annotations

import pytest
from hanmaru_testing.gateway import Rig

HI = [{"role": "user", "content": "hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cache_salt": ""}, "cache_salt"),
        ({"priority": 9}, "priority"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"n": 10**9}, "n"),
        ({"messages": IMAGE}, "messages[0].content[0].type"),
        ({"stop_token_ids": [2_000_000_000], "min_tokens": 1}, "stop_token_ids"),
        ({"logit_bias": {"2000000000": 1}}, "logit_bias"),
        ({"min_tokens": 9_000_000}, "min_tokens"),
    ],
)
async def test_a_refused_field_is_named_and_no_engine_hears_of_it(
    rig: Rig, fields: dict[str, object], param: str
) -> None:
    async with rig.client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI} | fields) as response:
        assert response.status == 400
        error = await rig.error_of(response)
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert rig.engine.requests == []
