"""Claims about the trace of a request that went through the whole gateway, as an OTLP receiver sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest
from hanmaru_testing.gateway import Rig
from hanmaru_testing.otlp_receiver import OtlpReceiver, otlp_receiver
from hanmaru_testing.scripted_engine_sse import Mood
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

pytestmark = pytest.mark.timeout(60)

RigMaker = Callable[..., AbstractAsyncContextManager[Rig]]
CLIENT_TRACE, CLIENT_SPAN = "1" * 32, "2" * 16
TRACEPARENT = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
CANARY = "the prompt nobody may see"
MESSAGES = [{"role": "user", "content": CANARY}]


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as made:
        yield made


def endpoint(receiver: OtlpReceiver) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}


async def trace_of(receiver: OtlpReceiver, root: str) -> dict[str, Span]:
    """Its spans by name, the root under `root`; complete, because a root ends last."""
    spans = await asyncio.to_thread(receiver.wait_for, root)
    return {root if span.name.startswith(root) else span.name: span for span in spans}


def attributes(span: Span) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        held = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in held.values] if kind == "array_value" else held
    return found


async def test_a_streams_trace_is_whole_and_reaches_the_engine(make_rig: RigMaker, receiver: OtlpReceiver) -> None:
    async with make_rig(environment=endpoint(receiver)) as rig:
        headers = {"traceparent": TRACEPARENT}
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3, "stream": True}
        async with rig.client.post("/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
        spans = await trace_of(receiver, "chat")
        sent = next(value for name, value in rig.engine.headers[0].items() if name.lower() == "traceparent")
    root = spans["chat"]
    assert root.name == "chat tiny"
    assert root.trace_id.hex() == CLIENT_TRACE
    assert root.parent_span_id.hex() == CLIENT_SPAN
    stages = {"auth", "tokenise", "admission", "route", "dispatch"}
    assert set(spans) == {"chat", *stages, "first token", "stream"}
    assert all(spans[name].parent_span_id == root.span_id for name in stages)
    assert all(spans[name].parent_span_id == spans["dispatch"].span_id for name in ("first token", "stream"))
    assert sent == f"00-{CLIENT_TRACE}-{spans['dispatch'].span_id.hex()}-01"
    seen = attributes(root)
    assert seen["hanmaru.tenant.id"] == "acme"
    assert seen["gen_ai.usage.output_tokens"] == 3
    assert attributes(spans["dispatch"])["hanmaru.replica.id"] == "worker-0"


async def test_a_whole_answers_trace_has_no_stream(make_rig: RigMaker, receiver: OtlpReceiver) -> None:
    async with make_rig(environment=endpoint(receiver)) as rig:
        response = await rig.chat(messages=MESSAGES, max_tokens=3)
        answer = await response.json()
        spans = await trace_of(receiver, "chat")
    assert {"first token", "stream"}.isdisjoint(spans)
    seen = attributes(spans["chat"])
    assert seen["gen_ai.response.id"] == answer["id"]
    assert seen["gen_ai.response.finish_reasons"] == ["length"]
    assert seen["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]


async def test_no_prompt_and_no_key_reaches_the_collector(make_rig: RigMaker, receiver: OtlpReceiver) -> None:
    async with make_rig(environment=endpoint(receiver)) as rig:
        for wrong in ({}, {"temperature": CANARY}, {"model": "other"}, {"stop": [CANARY], "stream": True}):
            response = await rig.chat(**{"messages": MESSAGES, **wrong})
            await response.read()
        async with rig.client.post("/v1/chat/completions", headers={"Authorization": f"Bearer {CANARY}"}) as refused:
            assert refused.status == 401
        key, secret = rig.key, rig.secret.decode()
    received = "".join(map(str, receiver.batches))
    assert "acme" in received
    for hidden in (CANARY, key, secret):
        assert hidden not in received


@pytest.mark.parametrize(
    ("mood", "fields", "error_type", "status"),
    [
        (Mood.WELL, {"model": "other"}, "model_not_found", Status.STATUS_CODE_UNSET),
        (Mood.DIES_MID_STREAM, {"stream": True}, "worker_lost", Status.STATUS_CODE_ERROR),
    ],
)
async def test_a_failed_requests_trace_says_whose_fault(
    make_rig: RigMaker, receiver: OtlpReceiver, mood: Mood, fields: dict[str, object], error_type: str, status: int
) -> None:
    async with make_rig(environment=endpoint(receiver), script={"mood": mood, "token_interval_s": 0.02}) as rig:
        response = await rig.chat(**fields)
        await response.read()
        root = (await trace_of(receiver, "chat"))["chat"]
    assert attributes(root)["error.type"] == error_type
    assert root.status.code == status


async def test_a_client_that_leaves_ends_its_trace(make_rig: RigMaker, receiver: OtlpReceiver) -> None:
    script = {"tokens": 400, "token_interval_s": 0.02}
    async with make_rig(environment=endpoint(receiver), script=script) as rig:
        response = await rig.chat(stream=True, max_tokens=400)
        await response.content.readany()
        response.close()
        spans = await trace_of(receiver, "chat")
    assert attributes(spans["chat"])["error.type"] == "cancelled"
    assert spans["chat"].status.code == Status.STATUS_CODE_UNSET


async def test_without_an_endpoint_the_engine_is_sent_no_trace(make_rig: RigMaker) -> None:
    async with make_rig() as rig:
        async with rig.client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES}, headers={"traceparent": TRACEPARENT}
        ) as response:
            await response.read()
        assert "traceparent" not in {name.lower() for name in rig.engine.headers[0]}
