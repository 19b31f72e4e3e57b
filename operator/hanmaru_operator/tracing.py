"""One span for each reconcile, and how they leave for an OTLP collector.

`main` opens it and wraps each reconcile in `reconcile`; who works inside adds its steps with `step`. Attributes are the
object's kind, namespace and name, the result, and what `step` is told: never a spec, a Secret or a message of the API
server. Without an endpoint there is no tracing, and every call here does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from urllib.parse import urlsplit

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from hanmaru_operator.types import ObjectKey

SERVICE_NAME = "hanmaru-operator"
MAX_QUEUED_SPANS = 2048
EXPORT_INTERVAL_S = 1.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 3.0
"""How long an ending operator waits for its last spans to leave."""


def read_endpoint(environ: Mapping[str, str]) -> str | None:
    """The OTLP gRPC receiver that the standard variables name, if any. Raises HanmaruError (CONFIGURATION)."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
    if endpoint is not None and (urlsplit(endpoint).scheme not in {"http", "https"} or not urlsplit(endpoint).netloc):
        raise HanmaruError(
            ErrorCode.CONFIGURATION,
            f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint!r} is no URL; use http://host:4317 or https://host:4317",
        )
    return endpoint


def step(name: str, **attributes: AttributeValue) -> None:
    """Something was done in the reconcile that runs: `replica.created`, with what a reader needs to know."""
    trace.get_current_span().add_event(name, attributes)


class Tracing:
    """Spans of one process. Without an exporter it is off."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        self._provider: TracerProvider | None = None
        if exporter is not None:
            resource = Resource.create({"service.name": SERVICE_NAME, "service.version": version("hanmaru")})
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(
                BatchSpanProcessor(
                    exporter, max_queue_size=MAX_QUEUED_SPANS, schedule_delay_millis=EXPORT_INTERVAL_S * 1000
                )
            )

    @contextlib.contextmanager
    def reconcile(self, key: ObjectKey) -> Iterator[None]:
        """A root span around one reconcile; an error shows as its type, because messages quote objects."""
        if self._provider is None:
            yield
            return
        tracer = self._provider.get_tracer("hanmaru_operator")
        attributes = {"k8s.object.kind": key.kind, "k8s.namespace.name": key.namespace, "k8s.object.name": key.name}
        with tracer.start_as_current_span(
            f"reconcile {key.kind}", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_attribute("hanmaru.reconcile.result", "failed")
                span.set_status(Status(StatusCode.ERROR))
                raise
            span.set_attribute("hanmaru.reconcile.result", "ok")

    async def close(self) -> None:
        """Let the last spans leave, for a while."""
        if self._provider is None:
            return
        # A daemon thread: one that still waits for a dead collector must not keep the process from ending.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)


def open_tracing(endpoint: str | None) -> Tracing:
    """Tracing to this receiver; one that cannot be reached costs spans, nothing else."""
    if endpoint is None:
        return Tracing(None)
    # Each lost batch would be an error line; the collector's own monitoring tells of its absence.
    for noisy in ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return Tracing(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S))
