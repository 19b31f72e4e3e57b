"""The engine's process and its HTTP server: started, asked, watched and ended.

`supervisor` is the only caller. The engine runs under `leash`, in a session of its own; all that it prints goes
to a log file. Nothing here decides when an engine is healthy (`pulse`), what it is told or by which routes (`engines`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, Self

import aiohttp
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_worker.report import Report

TAIL_LINES = 20
REPORT_TIMEOUT_S = 1.0
METRICS_TIMEOUT_S = 2.0
CLOSED_TIMEOUT_S = 10.0
END_TIMEOUT_S = 15.0
"""For a killed engine to be gone with all its children."""


@dataclass(frozen=True, slots=True)
class Interface:
    """How one sort of engine is asked over HTTP."""

    generate_path: str
    generate_body: Mapping[str, Any]
    """JSON of a request for one token."""
    alive_path: str
    """Answered with 200 as long as the engine works."""
    report_path: str
    read_report: Callable[[bytes], Report | None]
    """The body of `report_path`'s answer."""
    closed_path: str
    """A route that refuses the gateways' key; one that does not shows that the engine is open."""


class Engine:
    """One started engine. Made by `start`, ended by `stop` or `kill`; `close` frees the HTTP client."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        http: aiohttp.ClientSession,
        interface: Interface,
        origin: str,
        api_key: str,
        log_path: Path,
    ) -> None:
        self._process = process
        self._http = http
        self._interface = interface
        self._origin = origin
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self.log_path = log_path

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        interface: Interface,
        *,
        scratch: Path,
        origin: str,
        api_key: str,
        log_path: Path,
    ) -> Self:
        """Start the program; `origin` is where its HTTP server will answer. The log file is begun anew.

        The folder `scratch` is gone with the engine, even when this process is killed.

        Raises HanmaruError (CONFIGURATION) when the log cannot be written.
        """
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as error:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"cannot write the engine's log {log_path}: {error.strerror}"
            ) from error
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hanmaru_worker.leash",
                str(scratch),
                *argv,
                stdin=asyncio.subprocess.PIPE,  # its end is the end of the engine
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(log)
        return cls(process, aiohttp.ClientSession(), interface, origin, api_key, log_path)

    @property
    def pid(self) -> int:
        """Of the leash; the engine and its children are below it."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._process.returncode

    async def ended(self) -> int:
        """Wait for the end of the engine and of all its children; the exit status."""
        return await self._process.wait()

    async def fails(self) -> Never:
        """Wait for the end and raise it: for as long as nobody has asked the engine to end."""
        raise self.ended_by_itself(await self.ended())

    def ended_by_itself(self, status: int) -> HanmaruError:
        """The failure of an engine that ended unasked."""
        how = f"was killed by signal {status - 128}" if status > 128 else f"ended by itself with status {status}"
        return self.failure(f"the engine {how}")

    def failure(self, message: str) -> HanmaruError:
        """ENGINE_FAILED with `message` and where to read on."""
        return HanmaruError(ErrorCode.ENGINE_FAILED, f"{message}; what it said last is at the end of {self.log_path}")

    async def generates(self, deadline_s: float) -> bool:
        """Whether it produces a token within the deadline. A server that is not there yet is a no."""
        try:
            async with self._http.post(
                f"{self._origin}{self._interface.generate_path}",
                json=self._interface.generate_body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=deadline_s),
            ) as answer:
                await answer.read()
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def is_closed(self) -> bool:
        """Whether its other routes refuse the gateways' key: our code in its process sees to it, if it was loaded."""
        try:
            async with self._http.get(
                f"{self._origin}{self._interface.closed_path}",
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=CLOSED_TIMEOUT_S),
            ) as answer:
                return answer.status == 401
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def answers(self, deadline_s: float) -> bool:
        """Its health check: SGLang generates a token, furiosa-llm says whether it still works."""
        return await self._get(self._interface.alive_path, deadline_s) is not None

    async def report(self) -> Report | None:
        """The load it reports, or None when it does not answer in time."""
        body = await self._get(self._interface.report_path, REPORT_TIMEOUT_S)
        return None if body is None else self._interface.read_report(body)

    async def metrics(self) -> bytes:
        """Its own Prometheus page, empty when it does not answer."""
        return await self._get("/metrics", METRICS_TIMEOUT_S) or b""

    async def stop(self, grace_s: float) -> None:
        """Ask it to end (it finishes what it has), kill what is left after `grace_s`."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Kill it with all that it started. Cancelling this does not undo it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        # A stopped or stuck leash cannot do its work; the engine then dies with it, and its children with the engine.
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def close(self) -> None:
        """Free the HTTP client."""
        await self._http.close()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            with self.log_path.open(errors="replace") as log:
                return "".join(deque(log, lines)).rstrip()
        except OSError:
            return ""

    async def _get(self, path: str, deadline_s: float) -> bytes | None:
        timeout = aiohttp.ClientTimeout(total=deadline_s)
        try:
            async with self._http.get(f"{self._origin}{path}", headers=self._headers, timeout=timeout) as answer:
                body = await answer.read()
                return body if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None
