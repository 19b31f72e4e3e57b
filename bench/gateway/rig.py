"""The rig both benchmarks share: two cores, started processes, interleaved shots, medians.

Client and fake engine live on one core, the route under test with everything it starts on the other. All routes
are started once; while one is measured the others are stopped (SIGSTOP), so that an idle Ray costs nobody else. Each
round visits every cell (clients × streaming) and in it every route, in an order rotated by round; ratios are taken
within a round and their median is reported, because the machine's mood changes between rounds. Called by `run.py`
and `run_candidates.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from fake_engine import MODEL
from load import Result, Shot, request_bytes

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
ENGINE_CORE, PROXY_CORE = CORES[0], CORES[-1]
START_LIMIT_S = 120.0
STOP_LIMIT_S = 45.0
WARM_UP_S = 0.5
SETTLE_S = 0.5
"""What a stopped program has missed (timers, health checks) it makes up for now, not while it is measured."""
RECOVERY_S = 2.0
"""After having been stopped, Ray's processes need a moment before they can end in good order."""


class BenchError(Exception):
    """A route answered wrongly or not at all: there is no number to report."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition of the table."""

    clients: int
    is_streaming: bool

    def __str__(self) -> str:
        return f"{self.clients:>2} {'stream' if self.is_streaming else 'whole '}"


@dataclass(slots=True)
class Route:
    """One way from client to engine."""

    name: str
    url: str
    processes: list[psutil.Process] = field(default_factory=list)
    """Roots of everything that works for this route on the proxy core; their children count too."""
    always_on: list[psutil.Process] = field(default_factory=list)
    """Counted like `processes` but never stopped (a store whose leases must be renewed)."""
    model: str = MODEL
    key: str = "unused"
    log_path: Path | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    result: Result
    cpu_ms_per_request: float


@contextlib.contextmanager
def started(
    argv: Sequence[str], core: int, log_path: Path, env: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run `argv` on one core in a session of its own; end it, and what it left, on exit."""
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    process = psutil.Process(child.pid)
    try:
        yield process
    finally:
        family = _tree(process)
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.resume()
        child.terminate()
        try:
            child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"{argv[0]} did not stop in {STOP_LIMIT_S:.0f} s: killed", file=sys.stderr)
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        child.wait(10)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _members(route: Route) -> list[psutil.Process]:
    return [member for root in route.processes for member in _tree(root)]


def _signal(route: Route, number: signal.Signals) -> None:
    for member in _members(route):
        with contextlib.suppress(psutil.Error):
            member.send_signal(number)


def cpu_s(route: Route) -> float:
    """CPU seconds used so far by the route's living processes."""
    total = 0.0
    for member in [*_members(route), *(m for root in route.always_on for m in _tree(root))]:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def wait_until_serving(route: Route, limit_s: float = START_LIMIT_S) -> None:
    """Send single requests until one is answered with 200."""
    address = urlsplit(route.url)
    head, _, body = request_bytes(Shot(route.url, 1, False, 0.0, route.model, route.key)).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    deadline_s, seen = time.monotonic() + limit_s, "no answer"
    while time.monotonic() < deadline_s:
        for process in route.processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                log = route.log_path.read_text(errors="replace")[-2000:] if route.log_path else ""
                raise BenchError(f"{route.name} ended while starting: {log}")
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            seen = f"{answer.status} {answer.read()[:200].decode(errors='replace')}"
            if answer.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            seen = repr(error)
        finally:
            connection.close()
        time.sleep(0.2)
    raise BenchError(f"{route.name} did not serve within {limit_s:.0f} s; last: {seen}")


def fire(route: Route, cell: Cell, seconds: float) -> Sample:
    """One shot at one route. Raises BenchError on any error: a wrong answer has no speed."""
    argv = [sys.executable, str(HERE / "load.py"), "--url", route.url, "--clients", str(cell.clients)]
    argv += ["--seconds", str(seconds), "--model", route.model, *(["--stream"] if cell.is_streaming else [])]
    before_s = cpu_s(route)
    done = subprocess.run(
        argv,
        input=route.key,
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        preexec_fn=lambda: os.sched_setaffinity(0, {ENGINE_CORE}),
    )
    if not done.stdout.strip():
        raise BenchError(f"{route.name}: the load client failed: {done.stderr[-500:]}")
    result = Result(**json.loads(done.stdout))
    if result.errors or not result.requests:
        raise BenchError(f"{route.name} at {cell}: {result.errors} errors of {result.requests}: {result.first_error}")
    return Sample(result, (cpu_s(route) - before_s) * 1e3 / result.requests)


Samples = dict[tuple[str, Cell], list[Sample]]


def measure_all(routes: Sequence[Route], cells: Sequence[Cell], rounds: int, seconds: float) -> Samples:
    """Every route in every cell, `rounds` times, interleaved; a short discarded round first."""
    samples: Samples = {(route.name, cell): [] for route in routes for cell in cells}
    for route in routes:
        wait_until_serving(route)
    for route in routes:
        _signal(route, signal.SIGSTOP)
    for round_index in range(-1, rounds):
        turn = max(0, round_index) % len(routes)
        for cell in cells:
            for route in [*routes[turn:], *routes[:turn]]:
                _signal(route, signal.SIGCONT)
                if route.processes:
                    time.sleep(SETTLE_S)
                wait_until_serving(route, 15.0)
                sample = fire(route, cell, seconds if round_index >= 0 else WARM_UP_S)
                _signal(route, signal.SIGSTOP)
                if round_index >= 0:
                    samples[route.name, cell].append(sample)
        if round_index >= 0:
            print(f"round {round_index + 1} of {rounds} done", file=sys.stderr, flush=True)
    for route in routes:
        _signal(route, signal.SIGCONT)
    time.sleep(RECOVERY_S)
    return samples


def _number(sample: Sample, name: str) -> float:
    return float(getattr(sample.result, name))


def median_of(samples: Sequence[Sample], name: str) -> float:
    """Median over rounds of one number: a field of `Result`, or `cpu_ms_per_request`."""
    return statistics.median(
        sample.cpu_ms_per_request if name == "cpu_ms_per_request" else _number(sample, name) for sample in samples
    )


def median_ratio(samples: Samples, name: str, top: str, bottom: str, cell: Cell) -> float:
    """Median over rounds of `top`'s number divided by `bottom`'s in the same round."""
    pairs = zip(samples[top, cell], samples[bottom, cell], strict=True)
    return statistics.median(_number(a, name) / _number(b, name) for a, b in pairs)


def median_added(samples: Samples, name: str, route: str, base: str, cell: Cell) -> float:
    """Median over rounds of what `route` adds to `base`."""
    pairs = zip(samples[route, cell], samples[base, cell], strict=True)
    return statistics.median(_number(a, name) - _number(b, name) for a, b in pairs)


def table(samples: Samples, routes: Sequence[Route], cells: Sequence[Cell], base: str) -> str:
    """A Markdown table: one line a cell and route."""
    lines = [
        "| clients | route | req/s | vs direct | added p50 ms | added p99 ms | added first byte ms | CPU ms/request |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        for route in routes:
            mine = samples[route.name, cell]
            added = [median_added(samples, n, route.name, base, cell) for n in ("p50_ms", "p99_ms", "ttfb_p50_ms")]
            lines.append(
                f"| {cell} | {route.name} | {median_of(mine, 'rps'):,.0f} "
                f"| {median_ratio(samples, 'rps', route.name, base, cell):.4f} "
                f"| {added[0]:.3f} | {added[1]:.3f} | {added[2]:.3f} | {median_of(mine, 'cpu_ms_per_request'):.3f} |"
            )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """What the numbers were taken on; the load is the machine's before the run (on a busy one, trust only ratios)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return _machine(model)
    return _machine(platform.machine())


def _machine(cpu: str) -> dict[str, object]:
    return {
        "cpu": cpu,
        "cores": len(CORES),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
