"""Spans of reconciles: what they say, what they never say, and that a dead collector costs nothing else."""

from __future__ import annotations

import time

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.api_errors import Invalid
from hanmaru_operator.tracing import CLOSE_TIMEOUT_S, Tracing, open_tracing, read_endpoint, step
from hanmaru_operator.types import ObjectKey
from hanmaru_testing.otlp_receiver import otlp_receiver
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

KEY = ObjectKey("ModelDeployment", "ns", "m")
CANARY = "hmk_nobody_may_see"


async def test_a_reconcile_is_one_span_with_its_steps() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with tracing.reconcile(KEY):
        step("replica.created", replica="m-x")
    await tracing.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == "reconcile ModelDeployment"
    assert dict(span.attributes or {}) == {
        "k8s.object.kind": "ModelDeployment",
        "k8s.namespace.name": "ns",
        "k8s.object.name": "m",
        "hanmaru.reconcile.result": "ok",
    }
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("replica.created", {"replica": "m-x"})
    ]


async def test_a_failure_shows_its_type_and_none_of_its_words() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with pytest.raises(Invalid), tracing.reconcile(KEY):
        raise Invalid(CANARY)
    await tracing.close()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "Invalid"
    assert CANARY not in span.to_json()


async def test_without_an_endpoint_nothing_is_recorded() -> None:
    tracing = open_tracing(None)
    with tracing.reconcile(KEY):
        step("replica.created")
    await tracing.close()


async def test_spans_reach_a_collector_over_otlp() -> None:
    with otlp_receiver() as receiver:
        tracing = open_tracing(receiver.endpoint)
        with tracing.reconcile(KEY):
            pass
        await tracing.close()
        assert [span.name for span in receiver.spans()] == ["reconcile ModelDeployment"]


async def test_a_dead_collector_delays_the_end_by_seconds_at_most() -> None:
    tracing = open_tracing("http://127.0.0.1:1")
    with tracing.reconcile(KEY):
        pass
    begun = time.monotonic()
    await tracing.close()
    assert time.monotonic() - begun < CLOSE_TIMEOUT_S + 2


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:2"},
            "http://t:2",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_standard_variables_say_where_to(environ: dict[str, str], endpoint: str | None) -> None:
    assert read_endpoint(environ) == endpoint


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(HanmaruError, match="4317") as caught:
        read_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"})
    assert caught.value.code is ErrorCode.CONFIGURATION
