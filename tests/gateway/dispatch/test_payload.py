"""What an engine is sent: the gateway's decisions cannot be overridden by what a caller wrote."""

from __future__ import annotations

import json
from dataclasses import replace

from hanmaru_contracts.names import RequestId
from hanmaru_gateway.dispatch.payload import engine_payload
from hanmaru_gateway.request import Kind, ParsedRequest

ASKED = ParsedRequest(
    kind=Kind.CHAT,
    route="caller-s-name:adapter",
    stream=True,
    include_usage=False,
    max_output_tokens=5,
    n=1,
    fields={"messages": [{"role": "user", "content": "private"}], "max_completion_tokens": 5, "temperature": 1.5},
)


def payload(request: ParsedRequest) -> dict[str, object]:
    packed = engine_payload(
        request, served_name="served", token_ids=[4, 5], output_tokens=5, rid=RequestId("req-1"), cache_salt="salt"
    )
    body: dict[str, object] = json.loads(packed)
    return body


def test_chat_goes_as_token_ids_without_its_text() -> None:
    assert payload(ASKED) == {
        "messages": [{"role": "user", "content": ""}],
        "input_ids": [4, 5],
        "model": "served",
        "max_tokens": 5,
        "temperature": 1.5,
        "rid": "req-1",
        "cache_salt": "salt",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_completion_goes_as_token_ids() -> None:
    body = payload(replace(ASKED, kind=Kind.COMPLETION, stream=False, fields={"prompt": "private", "max_tokens": 99}))
    assert body["prompt"] == [4, 5]
    assert body["max_tokens"] == 5
    assert "stream_options" not in body
    assert "private" not in json.dumps(body)


def test_nothing_a_field_says_wins_over_the_gateway() -> None:
    smuggled = {"rid": "x", "cache_salt": "", "model": "x", "stream": False, "input_ids": [9], "max_tokens": 10**9}
    body = payload(replace(ASKED, fields={**ASKED.fields, **smuggled}))
    assert (body["rid"], body["cache_salt"], body["model"], body["input_ids"]) == ("req-1", "salt", "served", [4, 5])
    assert (body["stream"], body["max_tokens"]) == (True, 5)
