"""A real SGLang server process for tests: started, generating, and stopped with everything it started.

Used by the worker's tests and by whoever needs an engine beside a gateway. It runs on the native CPU platform
and takes flags as they are: what the product passes is decided by the worker, not here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ENGINE_ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_PLATFORM": "hanmaru_cpu",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # Measured on two cores: 0.5 token/s without the first, 25 s for the first request without the second.
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "hanmaru_worker.plugin.models",
}

READY_DEADLINE_S = 300.0
REQUEST_DEADLINE_S = 120.0
STOP_DEADLINE_S = 10.0


class EngineFailedError(AssertionError):
    """The engine ended, or did not generate in time; the message ends with its log's last lines."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that has generated at least one token."""

    url: str
    pid: int
    log_path: Path
    ready_s: float
    """Seconds from the start of the process to its first generated token."""

    def generate(self, body: Mapping[str, Any], *, deadline_s: float = REQUEST_DEADLINE_S) -> Any:
        """The answer of the engine's native `/generate`: an object, or a list for a batch."""
        return _post(f"{self.url}/generate", body, deadline_s)

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """A command such as `/flush_cache`; its answer is not looked at, an error is raised."""
        request = urllib.request.Request(
            f"{self.url}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()

    def get(self, path: str) -> str:
        """Body of a GET, for `/metrics`, `/server_info` and the like."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body.decode()

    def metric(self, name: str) -> float:
        """Sum over all label sets of a metric in `/metrics`; needs `--enable-metrics`."""
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in self.get("/metrics").splitlines()
            if line.startswith((f"{name}{{", f"{name} "))
        ]
        if not values:
            raise KeyError(f"{name} is not among the engine's metrics")
        return sum(values)

    def log(self) -> str:
        """All that the engine has written so far."""
        return self.log_path.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The server and everything it has started: tokenizer, schedulers (one a rank), detokenizer."""
        server = psutil.Process(self.pid)
        return [server, *server.children(recursive=True)]

    def cpu_shares(self, seconds: float) -> dict[str, float]:
        """Share of one core each of the engine's processes used over the next `seconds`, by name and pid."""
        processes = self.processes()
        before = [_cpu_s(process) for process in processes]
        started = time.monotonic()
        time.sleep(seconds)
        elapsed_s = time.monotonic() - started
        return {
            f"{process.name()}[{process.pid}]": (_cpu_s(process) - used) / elapsed_s
            for process, used in zip(processes, before, strict=True)
        }


@contextmanager
def running_engine(
    checkpoint: Path,
    flags: Sequence[str] = (),
    *,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = READY_DEADLINE_S,
) -> Iterator[Engine]:
    """Serve `checkpoint` on a free loopback port until the block ends; no process outlives the block.

    `flags` follow `--model-path`, `--device cpu`, `--host` and `--port`.
    """
    port = free_loopback_port()
    argv = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(checkpoint), "--device", "cpu"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--skip-server-warmup", *flags]
    started = time.monotonic()
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENGINE_ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_generates(server, url, log_path, started + deadline_s)
        yield Engine(url, server.pid, log_path, time.monotonic() - started)
    finally:
        _stop(server)


def free_loopback_port() -> int:
    """A port nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_generates(server: subprocess.Popen[bytes], url: str, log_path: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise EngineFailedError(f"the engine ended with status {server.returncode}\n{_tail(log_path)}")
        try:
            body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
            _post(f"{url}/generate", body, max(1.0, deadline - time.monotonic()))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    raise EngineFailedError(f"the engine did not generate in time\n{_tail(log_path)}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server, then end what is left of its process group and of its descendants."""
    try:
        left = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        left = []
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            server.kill()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait(STOP_DEADLINE_S)
    psutil.wait_procs(left, timeout=STOP_DEADLINE_S)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _post(url: str, body: Mapping[str, Any], deadline_s: float) -> Any:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=deadline_s) as answer:
        return json.loads(answer.read())


def _tail(log_path: Path, lines: int = 40, width: int = 300) -> str:
    # One line of the log is the engine's whole configuration.
    return "\n".join(line[:width] for line in log_path.read_text(errors="replace").splitlines()[-lines:])
