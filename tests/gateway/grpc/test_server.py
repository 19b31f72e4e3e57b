"""Claims about the gRPC edge on a real channel, with a flow whose every step the test decides."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import RequestId
from hanmaru_gateway.flow import ModelInfo
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2_grpc as pb_grpc
from hanmaru_gateway.grpc.server import GrpcServer, Tls, serve_grpc
from hanmaru_gateway.request import Answer, Call, Complete, Kind, RateState, Stream
from hanmaru_testing.certificates import self_signed

pytestmark = pytest.mark.timeout(30)

REQUEST = RequestId("req-" + "a" * 32)
RATE = RateState(limit_requests=10, remaining_requests=9, reset_requests_s=0.5)
CANARY = "the prompt nobody may see"
BODY_BYTES = 64 * 1024


def event(content: str) -> bytes:
    chunk = {"id": REQUEST, "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@dataclass
class ScriptedFlow:
    """Answers what the test says, and keeps what it was asked."""

    answer: Callable[[Call], Awaitable[Answer]] | None = None
    calls: list[Call] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """The last call's work has been given up or finished."""

    async def run(self, call: Call) -> Answer:
        self.calls.append(call)
        assert self.answer is not None
        return await self.answer(call)

    def models(self, authorization: str | None) -> list[ModelInfo]:
        if authorization != "Bearer good":
            raise HanmaruError(ErrorCode.INVALID_API_KEY, "no such key")
        return [ModelInfo("k-exaone", 32_768)]

    def streams(self, *blocks: bytes, then: Callable[[], Awaitable[None]] | None = None) -> None:
        async def events() -> AsyncGenerator[bytes, None]:
            try:
                for block in blocks:
                    yield block
                if then is not None:
                    await then()
                yield b"data: [DONE]\n\n"
            finally:
                self.ended.set()

        async def answer(call: Call) -> Answer:
            return Stream(REQUEST, events(), RATE)

        self.answer = answer

    def fails(self, error: Exception) -> None:
        async def answer(call: Call) -> Answer:
            raise error

        self.answer = answer


@asynccontextmanager
async def running(flow: ScriptedFlow, **settings: object) -> AsyncIterator[GrpcServer]:
    given: dict[str, object] = {"is_ready": lambda: True, "body_bytes": BODY_BYTES, "write_timeout_s": 5.0} | settings
    server = await serve_grpc(flow, "127.0.0.1", 0, **given)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
def flow() -> ScriptedFlow:
    return ScriptedFlow()


@pytest.fixture
async def server(flow: ScriptedFlow) -> AsyncIterator[GrpcServer]:
    async with running(flow) as made:
        yield made


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as made:
        yield made


def stub(channel: grpc.aio.Channel) -> pb_grpc.InferenceStub:
    return pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def chat() -> pb.ChatCompletionRequest:
    return pb.ChatCompletionRequest(model="m", messages=[pb.ChatMessage(role="user", content=CANARY)])


async def test_a_chat_reaches_the_flow_as_a_rest_client_would_have_sent_it(
    flow: ScriptedFlow, channel: grpc.aio.Channel
) -> None:
    body = {"id": REQUEST, "created": 1, "model": "m", "choices": [{"index": 0, "message": {"content": "네"}}]}

    async def answer(call: Call) -> Answer:
        return Complete(REQUEST, json.dumps(body).encode(), RATE)

    flow.answer = answer
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    call = stub(channel).ChatCompletion(
        chat(), metadata=(("authorization", "Bearer good"), ("traceparent", traceparent))
    )
    assert (await call).choices[0].message.content == "네"
    assert flow.calls == [
        Call(
            kind=Kind.CHAT,
            body=json.dumps(
                {"model": "m", "messages": [{"role": "user", "content": CANARY}]}, separators=(",", ":")
            ).encode(),
            authorization="Bearer good",
            traceparent=traceparent,
        )
    ]
    metadata = dict(await call.initial_metadata())
    assert metadata["x-request-id"] == REQUEST
    assert metadata["x-ratelimit-limit-requests"] == "10"
    assert metadata["x-ratelimit-remaining-requests"] == "9"
    assert metadata["x-ratelimit-reset-requests"] == "500ms"
    assert not any(key.endswith("-tokens") for key in metadata)


@pytest.mark.parametrize(("theirs", "answered"), [("mine-7", "mine-7"), ("x" * 200, REQUEST)])
async def test_a_callers_own_request_id_comes_back_when_it_is_sane(
    flow: ScriptedFlow, channel: grpc.aio.Channel, theirs: str, answered: str
) -> None:
    flow.streams(event("a"))
    call = stub(channel).StreamChatCompletion(chat(), metadata=(("x-request-id", theirs),))
    assert dict(await call.initial_metadata())["x-request-id"] == answered


async def test_a_stream_brings_each_block_as_one_message(flow: ScriptedFlow, channel: grpc.aio.Channel) -> None:
    flow.streams(event("한"), event("마") + event("루"))
    parts = [part async for part in stub(channel).StreamChatCompletion(chat())]
    assert [[choice.delta.content for choice in part.choices] for part in parts] == [["한"], ["마", "루"]]
    assert json.loads(flow.calls[0].body)["stream"] is True
    assert flow.ended.is_set()


async def test_completions_have_both_forms_too(flow: ScriptedFlow, channel: grpc.aio.Channel) -> None:
    body = json.dumps({"id": REQUEST, "choices": [{"index": 0, "text": "b"}]}).encode()

    async def answer(call: Call) -> Answer:
        return Complete(REQUEST, body, RateState())

    flow.answer = answer
    request = pb.CompletionRequest(model="m", prompt="a")
    assert (await stub(channel).Completion(request)).choices[0].text == "b"
    flow.streams(b"data: " + body + b"\n\n")
    parts = [part async for part in stub(channel).StreamCompletion(request)]
    assert [part.choices[0].text for part in parts] == ["b"]
    assert [call.kind for call in flow.calls] == [Kind.COMPLETION, Kind.COMPLETION]


async def test_models_are_those_of_the_key(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).ListModels(pb.ListModelsRequest(), metadata=(("authorization", "Bearer good"),))
    assert [(model.id, model.max_model_len) for model in answer.models] == [("k-exaone", 32_768)]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub(channel).ListModels(pb.ListModelsRequest())
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_error_is_a_status_with_what_a_program_can_act_on(
    flow: ScriptedFlow, channel: grpc.aio.Channel
) -> None:
    flow.fails(HanmaruError(ErrorCode.RATE_LIMIT_EXCEEDED, "slower: 한 번만", retry_after_s=2.5))
    for attempt in (stub(channel).ChatCompletion(chat()), _first(stub(channel).StreamChatCompletion(chat()))):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await attempt
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.value.details() == "slower: 한 번만"
        trailing = dict(error.value.trailing_metadata())
        assert trailing["hanmaru-error-code"] == "rate_limit_exceeded"
        assert trailing["retry-after-s"] == "3"


async def _first(call: grpc.aio.UnaryStreamCall) -> object:
    return await call.read()


async def test_a_stream_that_breaks_delivers_what_came_and_then_the_error(
    flow: ScriptedFlow, channel: grpc.aio.Channel
) -> None:
    async def breaks() -> None:
        raise HanmaruError(ErrorCode.WORKER_LOST, "the worker was lost")

    flow.streams(event("half"), then=breaks)
    call = stub(channel).StreamChatCompletion(chat())
    assert (await call.read()).choices[0].delta.content == "half"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.value.trailing_metadata())["hanmaru-error-code"] == "worker_lost"


async def test_a_bug_of_ours_tells_nothing_of_the_request(
    flow: ScriptedFlow, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    flow.fails(RuntimeError(CANARY))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub(channel).ChatCompletion(chat())
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert CANARY not in str(error.value)
    assert "grpc.failed" in caplog.text
    assert CANARY not in caplog.text


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_client_that_cancels_ends_the_work_at_once(flow: ScriptedFlow, channel: grpc.aio.Channel) -> None:
    flow.streams(event("a"), then=forever)
    call = stub(channel).StreamChatCompletion(chat())
    await call.read()
    call.cancel()
    await asyncio.wait_for(flow.ended.wait(), 2)


async def test_a_client_that_goes_away_ends_the_work(flow: ScriptedFlow, server: GrpcServer) -> None:
    flow.streams(event("a"), then=forever)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await stub(channel).StreamChatCompletion(chat()).read()
    await asyncio.wait_for(flow.ended.wait(), 2)


@pytest.mark.parametrize("method", ["ChatCompletion", "StreamChatCompletion"])
async def test_a_deadline_ends_the_work_wherever_it_is(
    flow: ScriptedFlow, channel: grpc.aio.Channel, method: str
) -> None:
    async def answer(call: Call) -> Answer:
        try:
            await forever()
        finally:
            flow.ended.set()
        raise AssertionError

    flow.answer = answer
    call = getattr(stub(channel), method)(chat(), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await (call if method == "ChatCompletion" else call.read())
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(flow.ended.wait(), 2)


async def test_a_deadline_ends_a_running_stream(flow: ScriptedFlow, channel: grpc.aio.Channel) -> None:
    flow.streams(event("a"), then=forever)
    call = stub(channel).StreamChatCompletion(chat(), timeout=0.5)
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    await asyncio.wait_for(flow.ended.wait(), 2)


async def test_a_client_that_does_not_read_is_cut_off(flow: ScriptedFlow) -> None:
    flow.streams(*[event("x" * 60_000)] * 500)
    async with running(flow, write_timeout_s=0.5) as server:
        # The client's side reads nothing before it is asked to; its windows are all that is taken.
        options = [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            call = stub(channel).StreamChatCompletion(chat())
            await call.read()
            await asyncio.wait_for(flow.ended.wait(), 10)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await _read_on(call)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def _read_on(call: grpc.aio.UnaryStreamCall) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_message_over_the_bound_never_reaches_the_flow(flow: ScriptedFlow, channel: grpc.aio.Channel) -> None:
    request = pb.CompletionRequest(model="m", prompt="x" * (BODY_BYTES + 1))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub(channel).Completion(request)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert flow.calls == []


async def test_a_packed_message_cannot_slip_under_the_bound(flow: ScriptedFlow, server: GrpcServer) -> None:
    request = pb.CompletionRequest(model="m", prompt="x" * (100 * BODY_BYTES))
    assert len(gzip.compress(request.SerializeToString())) < BODY_BYTES
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub(channel).Completion(request)
    assert error.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert flow.calls == []


@pytest.mark.parametrize("method", ["ChatCompletion", "Completion", "StreamChatCompletion", "StreamCompletion"])
async def test_bytes_that_are_no_message_are_refused_in_silence(
    channel: grpc.aio.Channel, flow: ScriptedFlow, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await channel.unary_unary(f"/hanmaru.v1.Inference/{method}")(b"\xff\xff\xff")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert flow.calls == []
    assert not caplog.records


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await channel.unary_unary("/hanmaru.v1.Inference/Embed")(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_lists_what_is_served(channel: grpc.aio.Channel) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="hanmaru.v1.Inference")

    listed, described = [
        answer async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask())
    ]
    assert {service.name for service in listed.list_services_response.service} == {
        "hanmaru.v1.Inference",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", "hanmaru.v1.Inference"])
async def test_health_follows_readiness_and_says_not_serving_at_shutdown(flow: ScriptedFlow, service: str) -> None:
    is_ready = False
    flow.streams(event("a"), then=forever)
    async with (
        running(flow, is_ready=lambda: is_ready) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watch.read()).status == NOT_SERVING
        is_ready = True
        assert (await watch.read()).status == SERVING
        call = stub(channel).StreamChatCompletion(chat())
        await call.read()
        stopping = asyncio.create_task(server.stop(1.0))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        call.cancel()
        await stopping


async def test_a_running_stream_may_finish_within_the_grace(flow: ScriptedFlow) -> None:
    go_on = asyncio.Event()

    async def waits() -> None:
        await go_on.wait()

    flow.streams(event("a"), then=waits)
    async with running(flow) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = stub(channel).StreamChatCompletion(chat())
        await call.read()
        stopping = asyncio.create_task(server.stop(5.0))
        await asyncio.sleep(0)
        go_on.set()
        assert await call.read() is grpc.aio.EOF
        await stopping


async def test_a_taken_port_is_said(flow: ScriptedFlow) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(HanmaruError, match="taken") as error:
            await serve_grpc(
                flow,
                "127.0.0.1",
                taken.getsockname()[1],
                is_ready=lambda: True,
                body_bytes=BODY_BYTES,
                write_timeout_s=1,
            )
    assert error.value.code is ErrorCode.CONFIGURATION


async def test_a_successor_can_share_the_port(flow: ScriptedFlow) -> None:
    async with running(flow, reuse_port=True) as first:
        second = await serve_grpc(
            flow,
            "127.0.0.1",
            first.port,
            is_ready=lambda: True,
            body_bytes=BODY_BYTES,
            write_timeout_s=1,
            reuse_port=True,
        )
        assert second.port == first.port
        await second.stop(0)


async def test_tls_is_spoken_when_a_certificate_is_given(flow: ScriptedFlow) -> None:
    made = self_signed("localhost")
    flow.streams(event("a"))
    async with running(flow, tls=Tls(made.certificate_chain, made.private_key)) as server:
        credentials = grpc.ssl_channel_credentials(made.certificate_chain)
        target = f"127.0.0.1:{server.port}"
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            assert [part async for part in stub(channel).StreamChatCompletion(chat())]
        async with grpc.aio.insecure_channel(target) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub(channel).ChatCompletion(chat())


def test_it_serves_from_a_uvloop_in_a_thread_of_its_own() -> None:
    """Where Ray Serve runs a replica's code."""
    ready, port = threading.Event(), 0
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def serve() -> None:
        nonlocal port, stop, loop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        flow = ScriptedFlow()
        flow.streams(event("a"))
        async with running(flow) as server:
            port = server.port
            ready.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(10)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            parts = list(pb_grpc.InferenceStub(channel).StreamChatCompletion(chat(), timeout=10))  # type: ignore[no-untyped-call]
        assert len(parts) == 1
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not thread.is_alive()
