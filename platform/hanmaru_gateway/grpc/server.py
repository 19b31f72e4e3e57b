"""Serves `hanmaru.v1.Inference`, health and reflection with grpc.aio, in the event loop that also serves REST.

Called by `app`. Each method turns its message into a `Call`, lets the flow run it, and turns the answer back; who may
do what is the flow's. A stream's message holds all events of one block, because each message costs Python gRPC about
75 µs: a client that reads slowly gets fewer, larger messages.

When a client cancels, goes away, or its deadline passes, grpc.aio cancels the method, which closes the stream's events,
which aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import HEADER_REQUEST_ID, HEADER_TRACEPARENT

from hanmaru_gateway.flow import ModelInfo
from hanmaru_gateway.grpc import convert
from hanmaru_gateway.grpc.errors import STATUS, trailing_metadata
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
from hanmaru_gateway.rate_headers import rate_headers
from hanmaru_gateway.request import Answer, Call, Complete, Kind, Stream

log = logging.getLogger(__name__)

SERVICE = "hanmaru.v1.Inference"
READINESS_INTERVAL_S = 0.5
"""How often the health service asks whether the gateway is ready."""
ANSWER_BYTES = 64 * 1024 * 1024
KEEPALIVE_S = 30
"""A connection that is silent so long is asked whether its client lives; without an answer it is closed."""
HANDSHAKE_TIMEOUT_S = 10
"""How long a new connection may take to speak HTTP/2 (and TLS)."""
METADATA_BYTES = 16 * 1024
_REQUEST_ID_CHARS = 128
"""Longest id of a caller's own that is sent back."""
_IDENTITY_ONLY = 1
"""Bit set of accepted compressions. gRPC bounds a message before it unpacks it, so that a packed one has no bound."""

# What gRPC's generated code calls a context is generic in two ways that nothing here depends on.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Serves(Protocol):
    """What the flow offers an edge."""

    async def run(self, call: Call) -> Answer:
        """Serve one request. Raises HanmaruError, and nothing else but cancellation."""

    def models(self, authorization: str | None) -> Sequence[ModelInfo]:
        """The models that the caller may use."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What a TLS listener shows, PEM."""

    certificate_chain: bytes
    private_key: bytes


class _Inference:
    """The service's methods, each from the bytes of its request."""

    def __init__(self, flow: Serves, write_timeout_s: float) -> None:
        self._flow = flow
        self._write_timeout_s = write_timeout_s

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods by name. gRPC parses no request: it would log a traceback for whatever bytes anyone sends."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ChatCompletion": unary(self.chat, response_serializer=_serialised),
                "StreamChatCompletion": stream(self.stream_chat, response_serializer=_serialised),
                "Completion": unary(self.completion, response_serializer=_serialised),
                "StreamCompletion": stream(self.stream_completion, response_serializer=_serialised),
                "ListModels": unary(self.models, response_serializer=_serialised),
            },
        )

    async def chat(self, request: bytes, context: Context) -> Message:
        async with _errors_told(context):
            body = convert.request_body(_parsed(pb.ChatCompletionRequest, request), stream=False)
            return convert.chat_response(await self._answer(Kind.CHAT, body, context))

    async def completion(self, request: bytes, context: Context) -> Message:
        async with _errors_told(context):
            body = convert.request_body(_parsed(pb.CompletionRequest, request), stream=False)
            return convert.completion_response(await self._answer(Kind.COMPLETION, body, context))

    async def stream_chat(self, request: bytes, context: Context) -> None:
        async with _errors_told(context):
            body = convert.request_body(_parsed(pb.ChatCompletionRequest, request), stream=True)
            await self._stream(Kind.CHAT, body, context, convert.chat_stream_part)

    async def stream_completion(self, request: bytes, context: Context) -> None:
        async with _errors_told(context):
            body = convert.request_body(_parsed(pb.CompletionRequest, request), stream=True)
            await self._stream(Kind.COMPLETION, body, context, convert.completion_stream_part)

    async def models(self, request: bytes, context: Context) -> Message:
        async with _errors_told(context):
            models = self._flow.models(_metadata(context).get("authorization"))
            return pb.ListModelsResponse(
                models=[pb.Model(id=model.route, max_model_len=model.context_tokens) for model in models]
            )

    async def _answer(self, kind: Kind, body: bytes, context: Context) -> bytes:
        answer = await self._flow.run(_call(kind, body, context))
        assert isinstance(answer, Complete), "a request that asks for no stream gets none"
        await context.send_initial_metadata(_initial_metadata(answer, context))
        return answer.body

    async def _stream(
        self, kind: Kind, body: bytes, context: Context, to_part: Callable[[bytes], Message | None]
    ) -> None:
        answer = await self._flow.run(_call(kind, body, context))
        assert isinstance(answer, Stream), "a request that asks for a stream gets one"
        try:
            await context.send_initial_metadata(_initial_metadata(answer, context))
            async for block in answer.events:
                part = to_part(block)
                if part is not None:
                    await self._write(part, context)
        finally:
            await answer.events.aclose()

    async def _write(self, part: Message, context: Context) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await context.write(part)
        except TimeoutError:
            raise HanmaruError(
                ErrorCode.REQUEST_TIMEOUT, f"the client left the stream unread for {self._write_timeout_s:g} s"
            ) from None


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()


_Request = TypeVar("_Request", pb.ChatCompletionRequest, pb.CompletionRequest)


def _parsed(message: type[_Request], request: bytes) -> _Request:
    try:
        return message.FromString(request)
    except DecodeError:
        name = message.DESCRIPTOR.full_name
        raise HanmaruError(ErrorCode.INVALID_REQUEST, f"the request is no {name}; use the service's proto") from None


def _call(kind: Kind, body: bytes, context: Context) -> Call:
    metadata = _metadata(context)
    return Call(kind, body, metadata.get("authorization"), metadata.get(HEADER_TRACEPARENT))


def _metadata(context: Context) -> dict[str, str]:
    """The caller's metadata; of a repeated key the last, binary ones left out."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _initial_metadata(answer: Answer, context: Context) -> tuple[tuple[str, str], ...]:
    theirs = _metadata(context).get(HEADER_REQUEST_ID, "")
    request_id = theirs if 1 <= len(theirs) <= _REQUEST_ID_CHARS and theirs.isprintable() else answer.request
    return ((HEADER_REQUEST_ID, request_id), *rate_headers(answer.rate))


@asynccontextmanager
async def _errors_told(context: Context) -> AsyncIterator[None]:
    """Translates what is raised inside into a status, once; of a bug of ours only the class is logged."""
    try:
        yield
    except HanmaruError as error:
        await context.abort(STATUS[error.code], error.message, trailing_metadata(error))
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        # grpc.aio would send the exception's text, which may quote the request.
        log_event(log, logging.ERROR, "grpc.failed", error=type(error).__name__)
        failure = HanmaruError(ErrorCode.INTERNAL, "the gateway failed; its log has more")
        await context.abort(STATUS[failure.code], failure.message, trailing_metadata(failure))


class GrpcServer:
    """A listening server; `serve_grpc` makes it, whoever made it stops it."""

    def __init__(self, server: grpc.aio.Server, port: int, is_ready: Callable[[], bool]) -> None:
        self._server = server
        self._is_ready = is_ready
        self._health = health.aio.HealthServicer()
        self._readiness: asyncio.Task[None] | None = None
        self.port = port
        """Where it listens: the one asked for, or a free one for 0."""

    async def start(self) -> None:
        """Answer; health says SERVING whenever the gateway is ready."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._tell_readiness()
        await self._server.start()
        self._readiness = asyncio.create_task(self._follow_readiness(), name="grpc-readiness")

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, say NOT_SERVING, and give running answers `grace_s` to end."""
        if self._readiness is not None:
            self._readiness.cancel()
            await asyncio.gather(self._readiness, return_exceptions=True)
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _follow_readiness(self) -> None:
        while True:
            await asyncio.sleep(READINESS_INTERVAL_S)
            await self._tell_readiness()

    async def _tell_readiness(self) -> None:
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if self._is_ready() else state.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve_grpc(
    flow: Serves,
    host: str,
    port: int,
    *,
    is_ready: Callable[[], bool],
    body_bytes: int,
    write_timeout_s: float,
    reuse_port: bool = False,
    tls: Tls | None = None,
) -> GrpcServer:
    """A server that answers at `host:port`; call it in the loop it shall run in.

    `body_bytes` bounds a request's message, `write_timeout_s` how long a client may leave a stream unread.
    `reuse_port` lets a replica start while its predecessor still listens. Raises HanmaruError (CONFIGURATION) when the
    port is taken or the certificate is none.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", body_bytes),
            ("grpc.max_send_message_length", ANSWER_BYTES),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
            ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_S * 1000),
        ]
    )
    server.add_generic_rpc_handlers((_Inference(flow, write_timeout_s).handlers(),))
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (tls.private_key, tls.certificate_chain)
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"gRPC cannot listen on {address}: the port is taken, or the certificate is none"
        ) from error
    made = GrpcServer(server, bound, is_ready)
    await made.start()
    return made
