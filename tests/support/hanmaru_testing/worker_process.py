"""A `hanmaru worker` process for tests: started with its files, its events awaited, ended with all it started."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from hanmaru_contracts import keys, names
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import EngineSpec

PLATFORM_SECRET = b"p" * 32
END_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerFiles:
    """Where a worker finds what it is told."""

    spec: EngineSpec
    replica: ReplicaId
    environment: dict[str, str]
    log_dir: Path


def write_worker_files(
    folder: Path, spec: EngineSpec, redis_url: str, *, replica: str = "worker-0", **variables: str
) -> WorkerFiles:
    """Spec, key and environment of one worker under `folder`; `variables` are further environment variables."""
    folder.mkdir(parents=True, exist_ok=True)
    spec_file, key_file, log_dir = folder / "spec.json", folder / "replica.key", folder / "logs"
    spec_file.write_text(spec.model_dump_json(by_alias=True))
    key_file.touch(mode=0o600)
    key_file.write_text(keys.replica_key(PLATFORM_SECRET, spec.model.id, ReplicaId(replica)).hex())
    environment = {
        names.ENV_ENGINE_SPEC: str(spec_file),
        names.ENV_REPLICA_ID: replica,
        names.ENV_REPLICA_KEY_FILE: str(key_file),
        names.ENV_REDIS_URL: redis_url,
        names.ENV_LOG_DIR: str(log_dir),
        **variables,
    }
    return WorkerFiles(spec, ReplicaId(replica), environment, log_dir)


class WorkerProcess:
    """One running supervisor. Events are read in order; `wait_for` skips those in between."""

    def __init__(self, files: WorkerFiles, process: subprocess.Popen[str]) -> None:
        self.files = files
        self.process = process
        self.events: list[dict[str, Any]] = []
        """All that were read so far."""
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    @property
    def engine_key(self) -> str:
        """What a gateway shows the engine."""
        spec = self.files.spec
        return keys.engine_api_key(keys.replica_key(PLATFORM_SECRET, spec.model.id, self.files.replica))

    @property
    def engine_url(self) -> str:
        return f"http://{self.host}:{self.files.spec.http_port}"

    @property
    def supervisor_url(self) -> str:
        return f"http://{self.host}:{self.files.spec.supervisor_port}"

    @property
    def host(self) -> str:
        return self.files.environment.get(names.ENV_ADVERTISE_HOST, "127.0.0.1")

    def failure(self) -> str:
        """The one sentence it ended with, after `exit_code`."""
        (event,) = [event for event in self.events if event["event"] == "worker.failed"]
        message: str = event["message"]
        return message

    def wait_for(self, event: str, deadline_s: float) -> dict[str, Any]:
        """The next such event; AssertionError with everything read when it does not come."""
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} within {deadline_s} s: {self.events}") from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(f"the worker ended before {event}: {self.events}")
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:
                found = {"event": line}
            self.events.append(found)
            if found.get("event") == event:
                return found

    def exit_code(self, deadline_s: float = END_DEADLINE_S) -> int:
        """Wait for the end and read the events that are left."""
        status = self.process.wait(deadline_s)
        self._reader.join(5)
        while (line := self._lines.get(timeout=5)) is not None:
            self.events.append(json.loads(line) if line.startswith("{") else {"event": line})
        self._lines.put(None)
        return status

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def tree(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def get(self, url: str, *, key: str | None = None, body: Any = None, deadline_s: float = 30.0) -> tuple[int, bytes]:
        """(status, body) of a GET, or of a POST when there is a body."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=deadline_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


@contextmanager
def running_worker(files: WorkerFiles, environment: Mapping[str, str] | None = None) -> Iterator[WorkerProcess]:
    """Start a worker; when the block ends it is killed, if it still runs, with everything below it."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from hanmaru_worker.launch import main; sys.exit(main([]))"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **files.environment, **(environment or {})},
    )
    worker = WorkerProcess(files, process)
    try:
        yield worker
    finally:
        left = worker.tree() if process.poll() is None else []
        for member in left:
            try:
                member.resume()
                member.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait(END_DEADLINE_S)
        psutil.wait_procs(left, timeout=10)


def free_port_run(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listened on a moment ago: a group's rank r adds r to both.

    Below the range that outgoing connections and other tests' single ports come from.
    """
    while True:
        first = random.randrange(12_000, 30_000, 10)
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


def wait_until_gone(processes: list[psutil.Process], deadline_s: float) -> list[psutil.Process]:
    """Those that still run at the deadline."""
    deadline = time.monotonic() + deadline_s
    left = processes
    while left and time.monotonic() < deadline:
        left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.1)
    return left


IDLE_WINDOW_S = 10.0
IDLE_WINDOWS = 3


def idle_shares(workers: Sequence[WorkerProcess], bound: float) -> list[float]:
    """The share of a core that each worker and all below it use while idle, once every share is within `bound`.

    Otherwise that of the last of a few windows: a busy neighbour's colder caches add to a window, nothing takes away.
    """

    def used_s(worker: WorkerProcess) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in worker.tree())

    for _ in range(IDLE_WINDOWS):
        before = [used_s(worker) for worker in workers]
        time.sleep(IDLE_WINDOW_S)
        shares = [(used_s(worker) - then) / IDLE_WINDOW_S for worker, then in zip(workers, before, strict=True)]
        if max(shares) <= bound:
            break
    return shares
