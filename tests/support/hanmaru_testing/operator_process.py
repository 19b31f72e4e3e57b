"""`hanmaru operator run` as a process of its own, for tests that need the whole operator or want to kill it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from hanmaru_contracts import names

PLATFORM_SECRET = "p" * 64
START_S = 40.0
"""Imports take seconds on a busy machine."""
STOP_S = 20.0
LEASE = {"leaseS": 4.0, "renewDeadlineS": 3.0, "retryS": 0.5}
"""Short, so that a test which kills a leader need not wait for long."""


class OperatorProcess:
    """One operator; a context manager that ends it. Its log is kept for the test that fails."""

    def __init__(
        self,
        folder: Path,
        *,
        kubeconfig: Path,
        redis_url: str,
        namespace: str,
        name: str = "operator-0",
        environ: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """`namespace`: its own, which must exist. `settings`: more of the settings file, as there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = folder / f"{name}.log"
        secret = folder / "platform-secret"
        secret.touch(mode=0o600)
        secret.write_text(PLATFORM_SECRET)
        self._file = folder / f"{name}.yaml"
        self._settings = settings
        self.configure()
        self._environment: Mapping[str, str] = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            names.ENV_OPERATOR_SETTINGS_FILE: str(self._file),
            names.ENV_PLATFORM_SECRET_FILE: str(secret),
            names.ENV_REDIS_URL: redis_url,
            names.ENV_POD_NAMESPACE: namespace,
            names.ENV_POD_NAME: name,
            **(environ or {}),
        }
        self._begun = 0
        """Where in the log the running process began."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def configure(self, **settings: Any) -> None:
        """Write its settings file for the next start: as it was made, and these over that."""
        ours: dict[str, Any] = {
            "lease": LEASE,
            "httpPort": 0,
            "operatorImage": "operator:test",
            "workerImages": {"SGLang": "worker:default"},
        }
        self._file.write_text(yaml.safe_dump({**ours, **self._settings, **settings}))

    def start(self) -> None:
        """Start it, and do not wait."""
        self._begun = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hanmaru_cli", "operator", "run"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def await_event(self, event: str, *, within_s: float = START_S) -> dict[str, Any]:
        """The first log event of that name since the process was started."""
        deadline = time.monotonic() + within_s
        while True:
            for line in self.log.read_bytes()[self._begun :].splitlines():
                if line.startswith(b"{") and (found := json.loads(line)).get("event") == event:
                    return dict(found)
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"the operator ended with {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no event {event} within {within_s:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, str]:
        """Ask its health and metrics server: status and body."""
        port = self.await_event("operator.serving")["port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def samples(self, metric: str) -> dict[str, float]:
        """A metric's samples now, by their labels as they are written; without labels by the empty text."""
        found = re.findall(rf"^{metric}(?:\{{(.*)\}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def kill(self) -> None:
        """As the kernel would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_S)

    def await_end(self, within_s: float) -> int:
        """Wait until it ends by itself; its exit status."""
        assert self._process is not None
        return self._process.wait(within_s)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """Have it not run any more, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Not running for a block; afterwards as it was made, leading again."""
        self.end()
        try:
            yield
        finally:
            self.configure()
            self.start()
            self.await_event("resync.ended")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if error is not None:
            print(f"--- {self.log.name}\n{self.tail()}")
