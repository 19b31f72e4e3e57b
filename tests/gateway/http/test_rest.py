"""The REST edge in front of a whole gateway: what an OpenAI client sees."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from typing import Any

import aiohttp
import pytest
from hanmaru_contracts import keys
from hanmaru_testing.gateway import Rig, eventually
from hanmaru_testing.scripted_engine_sse import Mood

pytestmark = pytest.mark.timeout(60)


def events_of(body: bytes) -> list[Any]:
    """Parsed events; the last is the text `[DONE]`."""
    events = []
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        assert event.startswith("data: "), event
        data = event.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


async def test_whole_answer_passes_through_unchanged(rig: Rig) -> None:
    async with await rig.chat(max_tokens=3) as response:
        body = await response.json()
    assert response.status == 200
    assert body["choices"][0]["message"]["content"] == "word0 word1 word2 "
    assert body["usage"]["completion_tokens"] == 3
    assert re.fullmatch(r"req-[0-9a-f]{32}", body["id"])
    assert response.headers["x-request-id"] == body["id"]


@pytest.mark.parametrize("asks_for_usage", [False, True])
async def test_stream_shows_usage_only_when_asked_for(rig: Rig, asks_for_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
    async with await rig.chat(max_tokens=3, stream=True, **options) as response:
        events = events_of(await response.read())
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events[-1] == "[DONE]"
    text = "".join(c["delta"].get("content") or "" for e in events[:-1] for c in e["choices"])
    assert text == "word0 word1 word2 "
    assert [e["usage"]["completion_tokens"] for e in events[:-1] if "usage" in e] == ([3] if asks_for_usage else [])
    assert rig.engine.requests[0]["stream_options"] == {"include_usage": True}


async def test_engine_gets_token_ids_and_only_what_the_gateway_decided(rig: Rig) -> None:
    async with await rig.chat(max_completion_tokens=3, temperature=0.5, user="somebody"):
        pass
    sent = rig.engine.requests[0]
    salt = keys.cache_salt(rig.secret, "own:acme")
    assert bytes(sent["input_ids"]) != b""
    assert {**sent, "input_ids": len(sent["input_ids"]), "rid": ""} == {
        "messages": [{"role": "user", "content": ""}],
        "input_ids": len("[user]hi[assistant]"),
        "model": "tiny",
        "max_tokens": 3,
        "temperature": 0.5,
        "rid": "",
        "cache_salt": salt,
        "stream": False,
    }


async def test_completion_prompt_is_sent_as_token_ids(rig: Rig) -> None:
    async with rig.client.post("/v1/completions", json={"model": "tiny", "prompt": "abc"}) as response:
        assert (await response.json())["choices"][0]["text"] == "word0 word1 word2 word3 "
    assert len(rig.engine.requests[0]["prompt"]) == 3
    assert rig.engine.requests[0]["max_tokens"] == 16


async def test_models_lists_only_what_the_key_may_call(rig: Rig) -> None:
    async with rig.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with rig.client.get("/v1/models", headers={"Authorization": f"Bearer {rig.other_key}"}) as response:
        assert (await response.json())["data"] == []
    async with rig.client.get("/v1/models", headers={"Authorization": "Bearer nobody"}) as response:
        assert response.status == 401


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("my-id-42", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("with space", False),
        ("käse", False),
        ("", False),
    ],
)
async def test_sane_request_ids_are_echoed_and_others_replaced(rig: Rig, sent: str, echoed: bool) -> None:
    for path, status in (("/v1/models", 200), ("/nowhere", 404)):
        async with rig.client.get(path, headers={"x-request-id": sent}) as response:
            assert response.status == status
            if echoed:
                assert response.headers["x-request-id"] == sent
            else:
                assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/chat", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
        ("POST", "/generate", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/flush_cache", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("PUT", "/v1/completions", 405, "method_not_allowed"),
    ],
)
async def test_other_routes_and_methods_are_openai_errors(
    rig: Rig, method: str, path: str, status: int, code: str
) -> None:
    async with rig.client.request(method, path) as response:
        assert response.status == status
        assert (await rig.error_of(response))["code"] == code


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer hmk_wrong", "Basic dTpw", "hmk_bare", "Bearer " + "k" * 5000],
)
async def test_bad_keys_get_401_whatever_the_body(rig: Rig, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession(rig.url) as anonymous,
        anonymous.post("/v1/chat/completions", data=b"{ no json" * 1000, headers=headers) as response,
    ):
        assert response.status == 401
        error = await rig.error_of(response)
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert response.headers["www-authenticate"] == "Bearer"
    assert rig.engine.requests == []


async def test_forbidden_and_unknown_models_look_the_same(rig: Rig) -> None:
    answers = []
    for name, key in (("tiny", rig.other_key), ("nosuch", rig.other_key), ("nosuch", rig.key)):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {key}", "x-request-id": "same"}
        async with rig.client.post("/v1/chat/completions", json=body, headers=headers) as response:
            told = (await response.text()).replace(name, "NAME")
            answers.append((response.status, told, dict(response.headers) | {"Content-Length": ""}))
    assert answers[0][0] == 404
    assert answers[0] == answers[1] == answers[2]


async def test_context_too_long_names_both_numbers(rig: Rig) -> None:
    async with await rig.chat(max_tokens=4090) as response:
        assert response.status == 400
        error = await rig.error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("4096", "19", "4090"))
    async with await rig.chat(messages=[{"role": "user", "content": "x" * 5000}]) as response:
        error = await rig.error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("4096", str(5000 + len("[user][assistant]"))))
    assert rig.engine.requests == []


async def test_output_nobody_asked_for_is_made_to_fit(rig: Rig) -> None:
    async with await rig.chat(messages=[{"role": "user", "content": "x" * 4000}]) as response:
        assert response.status == 200
    assert rig.engine.requests[0]["max_tokens"] == 4096 - 4000 - len("[user][assistant]")


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_packed_bodies_are_unpacked(rig: Rig, pack: Any) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    body = json.dumps({"model": "tiny", "prompt": "abc"}).encode()
    async with rig.client.post(
        "/v1/completions", data=pack(body), headers={"Content-Encoding": encoding, "Content-Type": "application/json"}
    ) as response:
        assert response.status == 200, await response.text()


async def test_content_type_is_not_insisted_on(rig: Rig) -> None:
    body = json.dumps({"model": "tiny", "prompt": "abc"}).encode()
    for content_type in ("text/plain", "application/octet-stream", ""):
        async with rig.client.post("/v1/completions", data=body, headers={"Content-Type": content_type}) as response:
            assert response.status == 200


async def test_rate_headers_tell_what_is_left(make_rig: Any) -> None:
    limit = {"requestsPerMinute": 10, "outputTokensPerMinute": 1000}
    async with make_rig(limits=[limit]) as rig:
        async with await rig.chat(max_tokens=100) as response:
            headers = response.headers
        assert headers["x-ratelimit-limit-requests"] == "10"
        assert headers["x-ratelimit-remaining-requests"] == "9"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert headers["x-ratelimit-remaining-tokens"] == "900"
        assert re.fullmatch(r"\d+ms", headers["x-ratelimit-reset-tokens"])


async def test_over_limit_is_429_with_retry_after(make_rig: Any) -> None:
    async with make_rig(limits=[{"requestsPerMinute": 2}]) as rig:
        statuses = []
        for _ in range(3):
            async with await rig.chat(max_tokens=1) as response:
                statuses.append(response.status)
                last = response
                body = await response.json()
        assert statuses == [200, 200, 429]
        assert 1 <= int(last.headers["retry-after"]) <= 31
        assert body["error"]["code"] == "rate_limit_exceeded"


async def test_what_was_not_used_is_given_back(make_rig: Any) -> None:
    async with make_rig(limits=[{"outputTokensPerMinute": 1000}]) as rig:
        for stream in (False, True):
            async with await rig.chat(max_tokens=900, stream=stream) as response:
                assert response.status == 200
                await response.read()
            await rig.settled()
            assert (await rig.levels())["output"] >= 990 * 60_000


async def test_metrics_are_on_their_own_port_alone(rig: Rig) -> None:
    async with await rig.chat(max_tokens=2):
        pass
    async with rig.client.get(f"http://127.0.0.1:{rig.gateway.metrics.port}/metrics") as response:
        text = await response.text()
    assert 'hanmaru_gateway_requests_total{model="local/tiny",outcome="ok"} 1.0' in text
    assert 'hanmaru_gateway_tokens_total{direction="output",model="local/tiny",tenant="acme"} 2.0' in text
    assert 'hanmaru_gateway_workers{model="local/tiny"} 1.0' in text
    async with rig.client.get(f"http://127.0.0.1:{rig.gateway.metrics.port}/v1/models") as response:
        assert response.status == 404


async def test_a_client_that_leaves_stops_the_engine(make_rig: Any) -> None:
    async with make_rig(
        script={"tokens": 1000, "token_interval_s": 0.02}, limits=[{"outputTokensPerMinute": 5000}]
    ) as rig:
        response = await rig.chat(max_tokens=1000, stream=True)
        await response.content.readany()
        response.close()
        async with asyncio.timeout(5):
            await rig.engine.aborted.wait()
        await rig.settled()
        assert (await rig.levels())["output"] > 4900 * 60_000
        assert rig.gateway.registry.inflight_requests == 0


async def test_a_client_that_leaves_a_whole_answer_stops_the_engine_and_pays(make_rig: Any) -> None:
    async with make_rig(
        script={"tokens": 1000, "token_interval_s": 0.02}, limits=[{"outputTokensPerMinute": 5000}]
    ) as rig:
        asking = asyncio.create_task(rig.chat(max_tokens=1000))
        await eventually(lambda: rig.engine.running == 1)
        asking.cancel()
        async with asyncio.timeout(5):
            await rig.engine.aborted.wait()
        await rig.settled()
        assert (await rig.levels())["output"] < 4100 * 60_000


async def test_engine_errors_never_show_their_words(rig: Rig) -> None:
    for mood, status, code in (
        (Mood.REFUSES, 400, "worker_refused"),
        (Mood.ERRS, 502, "worker_lost"),
        (Mood.TALKS_NONSENSE, 502, "worker_lost"),
    ):
        rig.engine.mood = mood
        await rig.workers[0].write()  # a suspected worker is believed again once it renews
        await eventually(lambda: rig.gateway.registry.workers(next(iter(rig.gateway.registry.fleet.models.values()))))
        async with await rig.chat() as response:
            text = await response.text()
            assert (response.status, json.loads(text)["error"]["code"]) == (status, code)
        assert "secret internals" not in text
        assert "html" not in text
