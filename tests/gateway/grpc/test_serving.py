"""Claims about gRPC through the whole gateway: the real flow, Redis and tenants, and an engine that is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2_grpc as pb_grpc
from hanmaru_testing.gateway import Rig, eventually
from hanmaru_testing.scripted_engine_sse import Mood

pytestmark = pytest.mark.timeout(60)

RigMaker = Callable[..., AbstractAsyncContextManager[Rig]]
CONTEXT_TOKENS = 512


class Client:
    """Stubs on one channel, with acme's key."""

    def __init__(self, rig: Rig, channel: grpc.aio.Channel) -> None:
        self.rig = rig
        self.engine = rig.engine
        self.stub = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        self.health = health_pb2_grpc.HealthStub(channel)
        self.metadata = (("authorization", f"Bearer {rig.key}"),)

    def chat(self, **fields: Any) -> Any:
        return self.stub.ChatCompletion(chat(**fields), metadata=self.metadata)

    def stream(self, **fields: Any) -> Any:
        return self.stub.StreamChatCompletion(chat(**fields), metadata=self.metadata)


@pytest.fixture
async def served(make_rig: RigMaker) -> AsyncIterator[Client]:
    limits = [{"requestsPerMinute": 1000}]
    async with (
        make_rig(limits=limits, context_tokens=CONTEXT_TOKENS, stall_timeout_s=1.0) as rig,
        grpc.aio.insecure_channel(f"127.0.0.1:{rig.gateway.grpc.port}") as channel,
    ):
        yield Client(rig, channel)


def chat(**fields: object) -> pb.ChatCompletionRequest:
    message = pb.ChatMessage(role="user", content="안녕하세요")
    return pb.ChatCompletionRequest(**{"model": "tiny", "messages": [message], "max_completion_tokens": 4, **fields})  # type: ignore[arg-type]


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Status, words and trailing metadata of a call that fails, now or later in its stream."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _to_the_end(call)
    return error.value.code(), error.value.details() or "", dict(error.value.trailing_metadata())


async def _to_the_end(call: Any) -> None:
    if isinstance(call, grpc.aio.UnaryStreamCall):
        while await call.read() is not grpc.aio.EOF:
            pass
    else:
        await call


async def test_a_chat_is_admitted_counted_and_answered(served: Client) -> None:
    call = served.chat()
    answer = await call
    assert answer.choices[0].message.content == "word0 word1 word2 word3 "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    metadata = dict(await call.initial_metadata())
    assert metadata["x-request-id"] == answer.id
    assert metadata["x-ratelimit-limit-requests"] == "1000"
    assert metadata["x-ratelimit-remaining-requests"] == "999"
    [sent] = served.engine.requests
    assert sent["cache_salt"]
    assert sent["rid"] == answer.id


async def test_a_chat_streams(served: Client) -> None:
    parts = [part async for part in served.stream(stream_options=pb.StreamOptions(include_usage=True))]
    deltas = [choice.delta.content for part in parts for choice in part.choices]
    assert "".join(deltas) == "word0 word1 word2 word3 "
    assert [choice.finish_reason for part in parts for choice in part.choices][-1] == "length"
    assert parts[-1].usage.completion_tokens == 4


async def test_completions_take_text_and_token_ids(served: Client) -> None:
    request = pb.CompletionRequest(model="tiny", prompt="once", max_tokens=2)
    answer = await served.stub.Completion(request, metadata=served.metadata)
    assert answer.choices[0].text == "word0 word1 "
    request = pb.CompletionRequest(model="tiny", prompt_token_ids=pb.TokenIds(ids=[5, 6, 7]), max_tokens=2)
    await served.stub.Completion(request, metadata=served.metadata)
    assert served.engine.requests[-1]["prompt"] == [5, 6, 7]


async def test_models_are_those_the_key_may_use(served: Client) -> None:
    models = (await served.stub.ListModels(pb.ListModelsRequest(), metadata=served.metadata)).models
    assert [(model.id, model.max_model_len) for model in models] == [("tiny", CONTEXT_TOKENS)]


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", ""),), (("authorization", "Bearer hmk_" + "x" * 43),), (("authorization", "Basic eDp4"),)],
)
async def test_without_a_known_key_nothing_is_served(served: Client, metadata: tuple[tuple[str, str], ...]) -> None:
    for call in (
        served.stub.ChatCompletion(chat(), metadata=metadata),
        served.stub.StreamChatCompletion(chat(), metadata=metadata),
        served.stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
    ):
        code, _, trailing = await refusal(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert trailing["hanmaru-error-code"] == "invalid_api_key"
    assert served.engine.requests == []


@pytest.mark.parametrize(
    ("request_message", "status", "error_code", "param"),
    [
        (chat(model="other"), grpc.StatusCode.NOT_FOUND, "model_not_found", "model"),
        (chat(model=""), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "model"),
        (chat(messages=[]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "messages"),
        (chat(n=1000), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "n"),
        (chat(temperature=float("nan")), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "temperature"),
        (chat(logit_bias={"1": float("inf")}), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", "logit_bias"),
        (
            chat(messages=[pb.ChatMessage(role="robot", content="x")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
            None,
        ),
        (
            chat(messages=[pb.ChatMessage(role="user", content="x" * 2 * CONTEXT_TOKENS)]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "context_length_exceeded",
            None,
        ),
    ],
)
async def test_a_bad_request_is_refused_as_over_rest(
    served: Client, request_message: pb.ChatCompletionRequest, status: grpc.StatusCode, error_code: str, param: str
) -> None:
    code, words, trailing = await refusal(served.stub.ChatCompletion(request_message, metadata=served.metadata))
    assert code is status
    assert words
    assert trailing["hanmaru-error-code"] == error_code
    if param is not None:
        assert trailing["hanmaru-error-param"] == param
    assert served.engine.requests == []


async def test_over_a_limit_the_caller_is_told_how_long_to_wait(make_rig: RigMaker) -> None:
    async with (
        make_rig(limits=[{"requestsPerMinute": 1}]) as rig,
        grpc.aio.insecure_channel(f"127.0.0.1:{rig.gateway.grpc.port}") as channel,
    ):
        served = Client(rig, channel)
        await served.chat()
        for call in (served.chat(), served.stream()):
            code, _, trailing = await refusal(call)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing["hanmaru-error-code"] == "rate_limit_exceeded"
            assert 1 <= int(trailing["retry-after-s"]) <= 60


async def test_health_says_serving_once_the_gateway_is_ready(served: Client) -> None:
    watch = served.health.Watch(health_pb2.HealthCheckRequest(service="hanmaru.v1.Inference"))
    while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
        continue


async def test_without_a_worker_the_caller_may_try_again(served: Client) -> None:
    served.engine.mood = Mood.DIES_AT_ONCE
    code, _, trailing = await refusal(served.chat())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert trailing["hanmaru-error-code"] in ("no_worker", "worker_lost")


async def test_a_client_that_cancels_a_stream_stops_the_engine_and_is_settled(served: Client) -> None:
    served.engine.tokens, served.engine.token_interval_s = 400, 0.02
    call = served.stream(max_completion_tokens=400)
    await call.read()
    assert served.engine.running == 1
    call.cancel()
    await asyncio.wait_for(served.engine.aborted.wait(), 5)
    await served.rig.settled()


async def test_a_client_that_cancels_a_whole_answer_stops_the_engine(served: Client) -> None:
    served.engine.mood = Mood.HANGS_AT_ONCE
    call = served.chat()
    await eventually(lambda: served.engine.running)
    call.cancel()
    await asyncio.wait_for(served.engine.aborted.wait(), 5)


@pytest.mark.parametrize("mood", [Mood.DIES_MID_STREAM, Mood.HANGS_MID_STREAM, Mood.FAILS_MID_STREAM])
async def test_a_worker_lost_mid_stream_is_said(served: Client, mood: Mood) -> None:
    served.engine.mood, served.engine.token_interval_s = mood, 0.05
    call = served.stream()
    assert (await call.read()).id
    code, words, trailing = await refusal(call)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert trailing["hanmaru-error-code"] == "worker_lost"
    assert "secret" not in words


async def test_a_slow_client_gets_fewer_and_larger_messages(served: Client) -> None:
    """Each message costs as much as many tokens: what waits is sent together."""
    served.engine.tokens = 400
    served.engine.payload_bytes = 1000
    call = served.stream(max_completion_tokens=400)
    parts = [part async for part in call]
    tokens = sum(len(part.choices) for part in parts)
    assert tokens >= 400
    assert len(parts) < tokens
