"""A stock OpenTelemetry collector on loopback, for tests and `make smoke`: built once, started, read, stopped.

The program is `tools/collector` (the project's own collector modules, nothing of ours but the list of them). It is
built and kept by `go_programs`. What it received is a file of OTLP JSON that this module reads.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanmaru_testing.go_programs import ROOT, GoProgram, built

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as the collector wrote it."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    service: str
    attributes: dict[str, Any]
    start_ns: int
    end_ns: int


class OtlpCollector:
    """One collector process on `127.0.0.1`; a context manager. Ports that are not given are free ones."""

    def __init__(self, *, grpc_port: int | None = None, http_port: int | None = None) -> None:
        self.grpc_port = grpc_port or _free_loopback_port()
        self.http_port = http_port or _free_loopback_port()
        self._folder = Path(tempfile.mkdtemp(prefix="hanmaru-otlp-"))
        self._received = self._folder / "traces.jsonl"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT, gRPC."""
        return f"http://127.0.0.1:{self.grpc_port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Build where needed, start, and wait until it listens. Raises RuntimeError with its log when it does not."""
        binary = collector_path()
        config = self._folder / "config.yaml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        log_path = self._folder / "collector.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, "--config", f"file:{config}"], stdout=log, stderr=log, start_new_session=True
            )
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not _listens(self.grpc_port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                text = log_path.read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"the collector does not listen on port {self.grpc_port}:\n{text}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process and delete what it received."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def spans(self) -> list[ReceivedSpan]:
        """All spans received so far, in order of arrival."""
        text = self._received.read_text() if self._received.exists() else ""
        lines = text.split("\n")[:-1]  # the last one may be half written
        return [span for line in lines for span in _spans(json.loads(line))]

    def _config(self) -> dict[str, Any]:
        return {
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"127.0.0.1:{self.grpc_port}"},
                        "http": {"endpoint": f"127.0.0.1:{self.http_port}"},
                    }
                }
            },
            "exporters": {"file": {"path": str(self._received), "flush_interval": "100ms"}},
            "service": {
                # Its own metrics would take a port of their own.
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
            },
        }


def collector_path() -> Path:
    """The built collector; builds it when it is not there (minutes), once however many ask."""
    return built(GoProgram("otlp-collector", ROOT / "tools/collector", "."))


def _spans(batch: dict[str, Any]) -> Iterator[ReceivedSpan]:
    for resource in batch.get("resourceSpans", []):
        service = str(_attributes(resource["resource"].get("attributes", [])).get("service.name", ""))
        for scope in resource.get("scopeSpans", []):
            for span in scope.get("spans", []):
                yield ReceivedSpan(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span["name"],
                    service=service,
                    attributes=_attributes(span.get("attributes", [])),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                )


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def _value(value: dict[str, Any]) -> Any:
    held: Any
    kind, held = next(iter(value.items()), ("stringValue", ""))
    if kind == "intValue":  # 64-bit integers are strings in protobuf's JSON
        return int(held)
    if kind == "arrayValue":
        return [_value(item) for item in held.get("values", [])]
    return held


def _free_loopback_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
