"""Claims about traces: which spans a request has, what they never say, and what a dead collector costs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ReplicaId, RequestId, TenantId
from hanmaru_gateway.request import Kind, ParsedRequest
from hanmaru_gateway.tracing import CLOSE_TIMEOUT_S, Off, Otlp, Stage, TracingSettings, Usage, open_tracing
from hanmaru_testing.otlp_receiver import otlp_receiver
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

REQUEST = RequestId("req-" + "0123456789abcdef" * 2)
CLIENT_TRACE = "11111111111111111111111111111111"
CLIENT_SPAN = "2222222222222222"
CANARY = "the prompt nobody may see"


class Recorder:
    """Tracing into memory."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Otlp(self.exporter, sample_ratio=sample_ratio, random=lambda: 0.5, clock=time.monotonic)

    async def spans(self) -> dict[str, ReadableSpan]:
        await self.tracing.close()
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    made = Recorder()
    yield made
    await made.tracing.close()


def parsed(**fields: object) -> ParsedRequest:
    return ParsedRequest(
        kind=Kind.CHAT, route="k-exaone", stream=True, include_usage=False, max_output_tokens=16, n=1, fields=fields
    )


def whole_request(tracing: Otlp, traceparent: str | None = None) -> str | None:
    """A streamed chat from first to last step; the traceparent that the engine was sent."""
    trace = tracing.request(Kind.CHAT, REQUEST, traceparent)
    for stage in (Stage.AUTH, Stage.TOKENISE, Stage.ADMISSION, Stage.ROUTE):
        with trace.stage(stage):
            pass
    trace.identified(TenantId("acme"))
    trace.asked(parsed(temperature=0.5, messages=[{"role": "user", "content": CANARY}], stop=[CANARY]))
    dispatch = trace.dispatch(ReplicaId("r0"), "127.0.0.1:30000", streams=True)
    dispatch.first_token()
    dispatch.first_token()
    dispatch.end()
    trace.answered(Usage(input_tokens=7, output_tokens=3, cached_tokens=4), ["stop"])
    trace.end()
    return dispatch.traceparent


async def test_a_streamed_request_is_one_trace_of_eight_spans(recorder: Recorder) -> None:
    whole_request(recorder.tracing)
    spans = await recorder.spans()
    root = spans["chat k-exaone"]
    assert root.kind is SpanKind.SERVER
    assert root.parent is None
    parents = {name: span.parent.span_id for name, span in spans.items() if span.parent is not None}
    under_root = {"auth", "tokenise", "admission", "route", "dispatch"}
    under_dispatch = {"first token", "stream"}
    assert set(spans) == {"chat k-exaone"} | under_root | under_dispatch
    assert all(parents[name] == root.context.span_id for name in under_root)
    assert all(parents[name] == spans["dispatch"].context.span_id for name in under_dispatch)
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["dispatch"].kind is SpanKind.CLIENT
    assert dict(spans["dispatch"].attributes or {}) == {
        "hanmaru.replica.id": "r0",
        "server.address": "127.0.0.1",
        "server.port": 30000,
    }


async def test_the_root_follows_the_genai_conventions(recorder: Recorder) -> None:
    whole_request(recorder.tracing)
    attributes = dict((await recorder.spans())["chat k-exaone"].attributes or {})
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0  # type: ignore[operator]
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hanmaru",
        "gen_ai.request.model": "k-exaone",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 16,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": REQUEST,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "hanmaru.tenant.id": "acme",
    }


async def test_no_text_of_the_caller_reaches_a_span(recorder: Recorder) -> None:
    with pytest.raises(RuntimeError), recorder.tracing.request(Kind.CHAT, REQUEST, None).stage(Stage.TOKENISE):
        raise RuntimeError(CANARY)
    whole_request(recorder.tracing)
    await recorder.tracing.close()
    assert CANARY not in "".join(span.to_json() for span in recorder.exporter.get_finished_spans())


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_the_callers_trace_goes_on_whatever_it_says_about_sampling(flags: str) -> None:
    recorder = Recorder()
    sent = whole_request(recorder.tracing, f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-{flags}")
    spans = await recorder.spans()
    root = spans["chat k-exaone"]
    assert f"{root.context.trace_id:032x}" == CLIENT_TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == CLIENT_SPAN
    assert sent == f"00-{CLIENT_TRACE}-{spans['dispatch'].context.span_id:016x}-01"


@pytest.mark.parametrize(
    "traceparent",
    ["", "x", "00-" + "0" * 32 + f"-{CLIENT_SPAN}-01", f"00-{CLIENT_TRACE}-short-01", "é" * 60, "00-" * 40_000],
)
async def test_a_malformed_traceparent_begins_a_trace_of_our_own(recorder: Recorder, traceparent: str) -> None:
    whole_request(recorder.tracing, traceparent)
    root = (await recorder.spans())["chat k-exaone"]
    assert root.parent is None


async def test_an_unsampled_request_tells_the_engine_not_to_begin_a_trace() -> None:
    recorder = Recorder(sample_ratio=0.25)
    sent = whole_request(recorder.tracing, f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01")
    assert sent is not None
    assert sent.startswith("00-")
    assert sent.endswith("-00")
    assert len(sent) == 55
    assert await recorder.spans() == {}


@pytest.mark.parametrize(
    ("error", "error_type", "is_failure"),
    [
        (HanmaruError(ErrorCode.RATE_LIMIT_EXCEEDED, "later"), "rate_limit_exceeded", False),
        (ErrorCode.WORKER_LOST, "worker_lost", True),
        (asyncio.CancelledError(), "cancelled", False),
        (GeneratorExit(), "cancelled", False),
        (KeyError("x"), "KeyError", True),
    ],
)
async def test_only_what_is_our_fault_marks_a_span_as_failed(
    error: BaseException | ErrorCode, error_type: str, is_failure: bool
) -> None:
    recorder = Recorder()
    trace = recorder.tracing.request(Kind.COMPLETION, REQUEST, None)
    dispatch = trace.dispatch(ReplicaId("r0"), "127.0.0.1:30000", streams=True)
    dispatch.end(error)
    trace.end(error)
    trace.end()
    spans = await recorder.spans()
    assert set(spans) == {"text_completion", "dispatch", "first token"}
    for span in spans.values():
        assert (span.attributes or {})["error.type"] == error_type
        assert (span.status.status_code is StatusCode.ERROR) is is_failure
        assert not span.events


async def test_a_second_try_is_a_second_dispatch(recorder: Recorder) -> None:
    trace = recorder.tracing.request(Kind.CHAT, REQUEST, None)
    first = trace.dispatch(ReplicaId("r0"), "127.0.0.1:30000", streams=False)
    first.end(ErrorCode.WORKER_LOST)
    second = trace.dispatch(ReplicaId("r1"), "127.0.0.1:30001", streams=False)
    second.end()
    trace.end()
    await recorder.tracing.close()
    tries = [span for span in recorder.exporter.get_finished_spans() if span.name == "dispatch"]
    assert [(span.attributes or {})["hanmaru.replica.id"] for span in tries] == ["r0", "r1"]
    assert first.traceparent != second.traceparent


def test_a_request_that_is_not_traced_makes_no_object() -> None:
    tracing = Off()
    first, second = (tracing.request(Kind.CHAT, REQUEST, None) for _ in range(2))
    assert first is second
    assert first.stage(Stage.AUTH) is first.stage(Stage.ROUTE)
    tries = [first.dispatch(ReplicaId("r0"), "127.0.0.1:30000", streams=True) for _ in range(2)]
    assert tries[0] is tries[1]
    assert tries[0].traceparent is None


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ({}, TracingSettings()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, TracingSettings()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, TracingSettings("http://c:4317")),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://t:4317"},
            TracingSettings("https://t:4317"),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, TracingSettings()),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
            TracingSettings("http://c:4317", 0.1),
        ),
    ],
)
def test_settings_come_from_the_standard_variables(env: dict[str, str], settings: TracingSettings) -> None:
    assert TracingSettings.from_env(env) == settings


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
        {"OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_TRACES_SAMPLER_ARG": "nan"},
        {"OTEL_TRACES_SAMPLER_ARG": "some"},
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(HanmaruError) as error:
        TracingSettings.from_env(env)
    assert error.value.code is ErrorCode.CONFIGURATION


def test_tracing_is_off_without_an_endpoint() -> None:
    assert isinstance(open_tracing(TracingSettings()), Off)


async def test_spans_reach_an_otlp_receiver_under_the_gateways_name() -> None:
    with otlp_receiver() as receiver:
        tracing = open_tracing(TracingSettings(receiver.endpoint))
        assert isinstance(tracing, Otlp)
        whole_request(tracing)
        await tracing.close()
        spans = receiver.spans()
        resource = {pair.key: pair.value.string_value for pair in receiver.batches[0].resource.attributes}
    assert {span.name for span in spans} >= {"chat k-exaone", "dispatch", "first token", "stream"}
    assert resource["service.name"] == "hanmaru-gateway"
    assert CANARY not in "".join(map(str, receiver.batches))


@pytest.mark.timeout(60)
async def test_a_dead_collector_costs_one_log_line_and_a_bounded_close(caplog: pytest.LogCaptureFixture) -> None:
    # Port 9 (discard): nothing listens there on a test machine.
    tracing = open_tracing(TracingSettings("http://127.0.0.1:9"))
    assert isinstance(tracing, Otlp)
    given_up = threading.Event()

    def heard(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("tracing.export_failed"):
            given_up.set()
        return True

    caplog.handler.addFilter(heard)
    with caplog.at_level(logging.DEBUG):
        began = time.monotonic()
        for _ in range(1000):
            whole_request(tracing)
        assert time.monotonic() - began < 10
        assert await asyncio.to_thread(given_up.wait, 30)
        whole_request(tracing)
        began = time.monotonic()
        await tracing.close()
        assert time.monotonic() - began < CLOSE_TIMEOUT_S + 1
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].getMessage().startswith("tracing.export_failed")
