"""One trace a request: which spans there are, what they say, and how they leave for an OTLP collector.

`app` makes one `Tracing` a process with `open_tracing`; `flow` asks it for a `RequestTrace` per request, wraps each
step in `stage`, sends `Dispatch.traceparent` to the engine so that the engine's spans join, and ends it once.
Contexts travel as objects, never as ambient state: a stream is carried on by whichever task reads it.

Left out on purpose: prompts, answers, keys, messages of exceptions (they may quote a prompt), `tracestate`,
metrics and logs. While tracing is off every call here is a method that does nothing on a shared object.

A caller's `traceparent` gives the trace its id and its parent, but not the decision to record: that is ours
(`sample_ratio`), so no tenant can fill the collector, nor hide, by setting a flag.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from random import SystemRandom
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import HEADER_TRACEPARENT, ReplicaId, RequestId, TenantId
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from hanmaru_gateway.request import Kind, ParsedRequest

log = logging.getLogger(__name__)

SERVICE_NAME = "hanmaru-gateway"

MAX_QUEUED_SPANS = 4096
"""Spans that wait for the collector; with more, the oldest are dropped. About 8 MB when full."""
EXPORT_INTERVAL_S = 1.0
EXPORT_TIMEOUT_S = 5.0
"""For one batch with its retries; after that the batch is lost."""
CLOSE_TIMEOUT_S = 3.0
"""How long a closing gateway waits for its last spans to leave."""

_OPERATIONS = {Kind.CHAT: "chat", Kind.COMPLETION: "text_completion"}
_NUMERIC_FIELDS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
"""Request fields shown in the root span, when they are numbers: no text of the caller's reaches a span."""
_OUR_FAULTS = frozenset(
    {
        ErrorCode.NO_WORKER,
        ErrorCode.STORE_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.WORKER_REFUSED,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.CONFIGURATION,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.INTERNAL,
    }
)
"""Codes that mark a span as failed; a caller's own mistake only sets `error.type`, as HTTP conventions ask."""
CANCELLED = "cancelled"
"""`error.type` of what its caller left."""
_KNOWN_ERRORS = frozenset({CANCELLED, *ErrorCode})


class Stage(StrEnum):
    """Steps of a request before dispatch; the value is the span's name."""

    AUTH = "auth"
    ADMISSION = "admission"
    TOKENISE = "tokenise"
    ROUTE = "route"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where spans go. Headers, certificates and resource attributes come from the SDK's own OTEL_* variables."""

    endpoint: str | None = None
    """OTLP gRPC receiver, `http://host:4317` (plain) or `https://…` (TLS). None: tracing is off."""
    sample_ratio: float = 1.0
    """Share of requests that are recorded (0–1)."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the standard variables; raises HanmaruError (CONFIGURATION) on a value that cannot be meant."""
        if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls()
        endpoint = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
        if endpoint is not None and (
            urlsplit(endpoint).scheme not in {"http", "https"} or not urlsplit(endpoint).netloc
        ):
            raise HanmaruError(
                ErrorCode.CONFIGURATION,
                f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint!r} is no URL; use http://host:4317 or https://host:4317",
            )
        text = env.get("OTEL_TRACES_SAMPLER_ARG", "1")
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise HanmaruError(ErrorCode.CONFIGURATION, f"OTEL_TRACES_SAMPLER_ARG={text!r} is no number from 0 to 1")
        return cls(endpoint=endpoint, sample_ratio=ratio)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a finished answer, as the engine counted them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


class Dispatch(Protocol):
    """The exchange with one engine: span `dispatch`, and in it `first token` and `stream` when the answer streams."""

    @property
    def traceparent(self) -> str | None:
        """Header for the engine's request; None: send none."""

    def first_token(self) -> None:
        """The first token has arrived; later calls do nothing."""

    def end(self, error: BaseException | ErrorCode | None = None) -> None:
        """The exchange is over; later calls do nothing."""


class RequestTrace(Protocol):
    """The spans of one request. Whoever started it calls `end` once everything under it has ended."""

    def stage(self, stage: Stage) -> AbstractContextManager[None]:
        """Span around one step; an exception that leaves it sets the span's `error.type`."""

    def identified(self, tenant: TenantId) -> None:
        """The caller is known."""

    def asked(self, request: ParsedRequest) -> None:
        """The request is checked: names the root span and records the model and numeric parameters."""

    def dispatch(self, replica: ReplicaId, address: str, *, streams: bool) -> Dispatch:
        """Begin an exchange with the engine at `address` (`host:port`); once more for each retry."""

    def answered(self, usage: Usage | None, finish_reasons: Sequence[str]) -> None:
        """What the engine said at the end; no `finish_reasons` where nobody read them (streams pass unread)."""

    def end(self, error: BaseException | ErrorCode | None = None) -> None:
        """The request is over; later calls do nothing."""


class Tracing(Protocol):
    """Makes traces; one a process."""

    def request(self, kind: Kind, request: RequestId, traceparent: str | None) -> RequestTrace:
        """Begin the trace of a request, under the caller's span when `traceparent` is well-formed."""

    async def close(self) -> None:
        """Send what is queued, within `CLOSE_TIMEOUT_S`; nothing is recorded afterwards."""


# --- Off, and requests that are not sampled -------------------------------------------------------------------------


class _NoStage:
    """A context manager that does nothing; holds no state, so that one serves all."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NO_STAGE = _NoStage()


class _Unrecorded:
    """A request without spans; also its own `Dispatch`."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def stage(self, stage: Stage) -> _NoStage:
        return _NO_STAGE

    def identified(self, tenant: TenantId) -> None:
        return None

    def asked(self, request: ParsedRequest) -> None:
        return None

    def dispatch(self, replica: ReplicaId, address: str, *, streams: bool) -> _Unrecorded:
        return self

    def first_token(self) -> None:
        return None

    def answered(self, usage: Usage | None, finish_reasons: Sequence[str]) -> None:
        return None

    def end(self, error: BaseException | ErrorCode | None = None) -> None:
        return None


_UNTRACED = _Unrecorded(traceparent=None)


class Off:
    """Tracing that is off: hands out one object that ignores everything."""

    def request(self, kind: Kind, request: RequestId, traceparent: str | None) -> RequestTrace:
        """The shared trace that records nothing."""
        return _UNTRACED

    async def close(self) -> None:
        """Nothing is queued."""


# --- On -------------------------------------------------------------------------------------------------------------


def _error_type(error: BaseException | ErrorCode) -> str:
    if isinstance(error, ErrorCode):
        return error.value
    if isinstance(error, HanmaruError):
        return error.code.value
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    return type(error).__qualname__


def _finish(span: Span, error: BaseException | ErrorCode | None) -> None:
    if error is not None:
        kind = _error_type(error)
        span.set_attribute("error.type", kind)
        if kind in _OUR_FAULTS or kind not in _KNOWN_ERRORS:
            span.set_status(Status(StatusCode.ERROR))
    span.end()


class _Stage:
    """Span `stage` from entering to leaving."""

    __slots__ = ("_name", "_span", "_trace")

    def __init__(self, trace: _Recorded, name: Stage) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        self._span = self._trace.child(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _finish(self._span, error)


class _RecordedDispatch:
    """See `Dispatch`."""

    __slots__ = ("_context", "_ended", "_part", "_span", "_trace")

    def __init__(self, trace: _Recorded, span: Span, *, streams: bool) -> None:
        self._trace = trace
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._ended = False
        self._part: Span | None = trace.child("first token", self._context) if streams else None

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"

    def first_token(self) -> None:
        if self._part is None or self._ended or not self._trace.note_first_token():
            return
        self._part.end()
        self._part = self._trace.child("stream", self._context)

    def end(self, error: BaseException | ErrorCode | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if self._part is not None:
            _finish(self._part, error)
        _finish(self._span, error)


class _Recorded:
    """See `RequestTrace`."""

    __slots__ = ("_begun_s", "_clock", "_context", "_ended", "_has_first_token", "_operation", "_root", "_tracing")

    def __init__(
        self, tracing: Otlp, kind: Kind, request: RequestId, parent: Context, clock: Callable[[], float]
    ) -> None:
        self._tracing = tracing
        self._clock = clock
        self._begun_s = clock()
        self._operation = _OPERATIONS[kind]
        self._has_first_token = False
        self._ended = False
        self._root = tracing.span(
            self._operation,
            parent,
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "hanmaru",
                "gen_ai.response.id": request,
            },
        )
        self._context = set_span_in_context(self._root, Context())

    def child(
        self,
        name: str,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        """A started span under `parent`, or under the root."""
        return self._tracing.span(name, parent or self._context, kind, attributes)

    def note_first_token(self) -> bool:
        """Record the time to the request's first token; False when it has been recorded."""
        if self._has_first_token:
            return False
        self._has_first_token = True
        self._root.set_attribute("gen_ai.response.time_to_first_chunk", self._clock() - self._begun_s)
        return True

    def stage(self, stage: Stage) -> _Stage:
        return _Stage(self, stage)

    def identified(self, tenant: TenantId) -> None:
        self._root.set_attribute("hanmaru.tenant.id", tenant)

    def asked(self, request: ParsedRequest) -> None:
        self._root.update_name(f"{self._operation} {request.route}")
        attributes: dict[str, AttributeValue] = {
            "gen_ai.request.model": request.route,
            "gen_ai.request.stream": request.stream,
        }
        if request.max_output_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = request.max_output_tokens
        if request.n != 1:
            attributes["gen_ai.request.choice.count"] = request.n
        for field, attribute in _NUMERIC_FIELDS.items():
            value = request.fields.get(field)
            if isinstance(value, int | float) and not isinstance(value, bool):
                attributes[attribute] = value
        self._root.set_attributes(attributes)

    def dispatch(self, replica: ReplicaId, address: str, *, streams: bool) -> _RecordedDispatch:
        url = urlsplit(f"//{address}")
        attributes: dict[str, AttributeValue] = {"hanmaru.replica.id": replica, "server.address": url.hostname or ""}
        if url.port is not None:
            attributes["server.port"] = url.port
        return _RecordedDispatch(self, self.child("dispatch", None, SpanKind.CLIENT, attributes), streams=streams)

    def answered(self, usage: Usage | None, finish_reasons: Sequence[str]) -> None:
        attributes: dict[str, AttributeValue] = {}
        if finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = tuple(finish_reasons)
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
            if usage.cached_tokens is not None:
                attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        self._root.set_attributes(attributes)

    def end(self, error: BaseException | ErrorCode | None = None) -> None:
        if not self._ended:
            self._ended = True
            _finish(self._root, error)


class _SaidOnce(SpanExporter):
    """Passes batches on; says once that the collector cannot be reached, and once that it can again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lost_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost_spans:
                log.info("tracing.export_resumed endpoint=%s lost_spans=%d", self._endpoint, self._lost_spans)
            self._lost_spans = 0
        else:
            if not self._lost_spans:
                log.warning("tracing.export_failed endpoint=%s (said once until it works again)", self._endpoint)
            self._lost_spans += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Otlp:
    """Tracing that is on. Spans queue in memory and leave in batches from a thread of their own."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        sample_ratio: float = 1.0,
        random: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._sample_ratio = sample_ratio
        self._random = random
        self._clock = clock
        self._propagator = TraceContextTextMapPropagator()
        # Sampling is decided before a span exists. The SDK would flush at exit without a bound; `close` has one.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": SERVICE_NAME, "service.version": version("hanmaru")}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=MAX_QUEUED_SPANS, schedule_delay_millis=EXPORT_INTERVAL_S * 1000
            )
        )
        self._tracer = self._provider.get_tracer("hanmaru_gateway")

    def span(self, name: str, parent: Context, kind: SpanKind, attributes: Mapping[str, AttributeValue] | None) -> Span:
        """A started span."""
        return self._tracer.start_span(name, parent, kind, attributes)

    def request(self, kind: Kind, request: RequestId, traceparent: str | None) -> RequestTrace:
        """See `Tracing`. An unsampled request still tells the engine so, or the engine would begin a trace itself."""
        if self._random() >= self._sample_ratio:
            # The request id is 128 random bits in hexadecimal: as good as any trace id, and findable.
            digits = request.removeprefix("req-")
            return _Unrecorded(f"00-{digits}-{digits[:16]}-00")
        parent = (
            Context() if traceparent is None else self._propagator.extract({HEADER_TRACEPARENT: traceparent}, Context())
        )
        return _Recorded(self, kind, request, parent, self._clock)

    async def close(self) -> None:
        """See `Tracing`."""
        # A daemon thread: one that still waits for a dead collector must not keep the process from ending.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)


def open_tracing(settings: TracingSettings) -> Tracing:
    """Tracing as configured. A collector that cannot be reached, now or later, costs spans and one log line."""
    if settings.endpoint is None:
        return Off()
    # The exporter logs each retry and each lost batch; `_SaidOnce` says the same once.
    for noisy in ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_TIMEOUT_S)
    return Otlp(
        _SaidOnce(exporter, settings.endpoint),
        sample_ratio=settings.sample_ratio,
        random=SystemRandom().random,
        clock=time.monotonic,
    )
