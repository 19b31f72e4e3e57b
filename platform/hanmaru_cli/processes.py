"""Keeping one part running: start it, start it again with back-off when it ends, stop it in good order.

`session` holds one `Keeper` a part. A part gets a session of its own, so that the terminal's Ctrl-C reaches `up` alone,
and a mark in its environment, so that what it leaves behind when it dies is found and ended before it starts again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_cli.laptop import Part
from hanmaru_cli.marks import ENV_UP_ID, ENV_UP_PART, KEEP_READABLE, kill_marked

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
STEADY_S = 60.0
"""A part that ran so long was well: its next end is a new story."""


def next_delay_s(previous_s: float, ran_s: float) -> float:
    """How long to wait before the next start: 1 s, doubling to 30 s while the part keeps dying young."""
    if previous_s == 0 or ran_s >= STEADY_S:
        return FIRST_DELAY_S
    return min(previous_s * 2, LONGEST_DELAY_S)


@dataclass(frozen=True, slots=True)
class End:
    """A part ended without having been asked to."""

    part: Part
    status: int
    """Exit status; negative: the signal that ended it."""
    delay_s: float
    """It starts again after so long."""

    @property
    def how(self) -> str:
        """For people."""
        return f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"exit status {self.status}"

    def __str__(self) -> str:
        return f"{self.part.name} ended ({self.how}); it starts again in {self.delay_s:.0f} s"


class Keeper:
    """Runs one part until `stop`. Its output goes to `log`, which is begun anew and then only added to."""

    def __init__(
        self,
        part: Part,
        *,
        up_id: str,
        environment: Mapping[str, str],
        log: Path,
        on_end: Callable[[End], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.part = part
        self.log = log
        self._mark = {ENV_UP_ID: up_id, ENV_UP_PART: part.name}
        self._environment = {**environment, **part.environment, **KEEP_READABLE, **self._mark}
        self._on_end = on_end
        self._now = now
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Start the part, again and again, until `stop`. Raises HanmaruError when it cannot even be started."""
        try:
            delay_s = 0.0
            self._begin_log()
            while not self._stopping.is_set():
                started = self._now()
                status = await self._run_once()
                await asyncio.to_thread(kill_marked, self._mark)
                if self._stopping.is_set():
                    return
                delay_s = next_delay_s(delay_s, self._now() - started)
                self._on_end(End(self.part, status, delay_s))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
        finally:
            self._ended.set()

    async def stop(self) -> bool:
        """Ask it to end and wait; kill it and all it started when it takes too long. True: it ended by itself."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), self.part.stop_s)
        except TimeoutError:
            await self.kill()
            await self._ended.wait()
            return False
        return True

    async def kill(self) -> None:
        """End it and all it started, at once."""
        self._stopping.set()
        await asyncio.to_thread(kill_marked, self._mark)

    def tail(self, lines: int = 20) -> list[str]:
        """Last lines of its log."""
        with suppress(OSError), self.log.open(errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, maxlen=lines)]
        return []

    async def _run_once(self) -> int:
        try:
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self.part.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"{self.part.name} cannot be started ({self.part.argv[0]}): {error}"
            ) from error
        if self._stopping.is_set():  # asked to stop while it started
            self._signal(signal.SIGTERM)
        return await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # The part alone, not its group: Ray's daemons must live until the gateway has taken its leave of them.
        with suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    def _begin_log(self) -> None:
        try:
            with suppress(FileNotFoundError):
                self.log.replace(self.log.with_suffix(".previous.log"))
            os.close(os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"cannot write {self.log}: {error.strerror or error}; free space there"
            ) from error
