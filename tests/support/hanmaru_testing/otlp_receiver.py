"""An OTLP receiver in the test's own process: OpenTelemetry's own service and messages, nothing of ours between.

For what the gateway sends; that a stock collector takes it too is `otlp_collector`'s to show.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


@dataclass
class OtlpReceiver(service_grpc.TraceServiceServicer):
    """What has been received so far."""

    port: int = 0
    batches: list[ResourceSpans] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def Export(self, request: service.ExportTraceServiceRequest, context: Any) -> service.ExportTraceServiceResponse:
        """The service's one method."""
        self.batches.extend(request.resource_spans)
        return service.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """In order of arrival."""
        return [span for batch in list(self.batches) for scope in batch.scope_spans for span in scope.spans]

    def wait_for(self, name: str, timeout_s: float = 10.0) -> list[Span]:
        """The trace of the first span whose name begins so. Raises TimeoutError with the names received instead."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            spans = self.spans()
            found = next((span for span in spans if span.name.startswith(name)), None)
            if found is not None:
                return [span for span in spans if span.trace_id == found.trace_id]
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no span {name}, only {sorted(span.name for span in spans)}")
            time.sleep(0.05)


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver on a free loopback port until the block ends."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(2))
    service_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()
