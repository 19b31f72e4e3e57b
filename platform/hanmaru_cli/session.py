"""One run of `hanmaru up`, from the first process to the last: start, wait until ready, stay, end in order.

`up` makes the plan and calls `Session.run`; one `Keeper` a part keeps it alive, and the guard cleans up however this
process ends.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
from hanmaru_contracts.errors import HanmaruError

from hanmaru_cli import probe
from hanmaru_cli.guard import NO_GRACE
from hanmaru_cli.laptop import Part, Plan
from hanmaru_cli.marks import ENV_UP_ID
from hanmaru_cli.processes import End, Keeper
from hanmaru_cli.state import Running, StateFolder
from hanmaru_cli.terminal import Terminal
from hanmaru_cli.welcome import render_welcome

_LOOK_INTERVAL_S = 0.5
_GUARD_WAIT_S = 20.0
_SECOND_THOUGHT_S = 0.5
"""A hang-up comes twice, from the kernel and from the shell; a person's second Ctrl-C comes later."""


class Session:
    """`lock` is the descriptor that holds the state folder's lock; the guard inherits it."""

    def __init__(
        self,
        plan: Plan,
        running: Running,
        *,
        api_key: str,
        state: StateFolder,
        lock: int,
        environment: Mapping[str, str],
        terminal: Terminal,
    ) -> None:
        self._plan = plan
        self._running = running
        self._api_key = api_key
        self._state = state
        self._lock = lock
        self._environment = environment
        self._terminal = terminal
        self._keepers = {
            part.name: Keeper(
                part,
                up_id=running.up_id,
                environment=environment,
                log=state.logs / f"{part.name}.log",
                on_end=self._part_ended,
            )
            for part in plan.parts
        }
        self._is_up = False
        self._failed: End | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_asked_at: float | None = None
        self._guard: asyncio.subprocess.Process

    async def run(self) -> int:
        """Returns the exit status: 0 after having been asked to end. Raises HanmaruError when a part cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        self._guard = await self._start_guard()
        try:
            await self._work_until_stopped()
        except* HanmaruError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._end_guard()
        if self._failed is not None:
            self._explain(self._failed)
            return 1
        self._terminal.say("Killed." if self._hurry.is_set() else "Ended.")
        return 0

    async def _work_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            started = time.monotonic()
            guarding = tasks.create_task(self._keep_guard())
            # Redis first: it is there at once. The others together: the engine takes longest, Ray hides behind it.
            for parts in ([self._plan.redis], [*self._plan.workers, self._plan.gateway]):
                for part in parts:
                    tasks.create_task(self._keepers[part.name].run())
                await self._until_ready(parts, started)
                if self._stop.is_set():
                    break
            else:
                self._say_up(time.monotonic() - started)
            await self._stop.wait()
            self._terminal.end_progress()
            await self._end()
            guarding.cancel()

    async def _until_ready(self, parts: Sequence[Part], started: float) -> None:
        """Return when all can do their work, or when the run is to stop."""
        while not self._stop.is_set():
            seen = await asyncio.gather(*(asyncio.to_thread(probe.look, part) for part in parts))
            stages = " · ".join(f"{part.name}: {answer.stage}" for part, answer in zip(parts, seen, strict=True))
            self._terminal.progress(time.monotonic() - started, stages)
            if all(answer.ready for answer in seen):
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_INTERVAL_S)

    def _say_up(self, took_s: float) -> None:
        self._is_up = True
        self._terminal.end_progress()
        self._state.write_running(msgspec.structs.replace(self._running, ready=True))
        self._terminal.say(render_welcome(self._running, api_key=self._api_key, took_s=took_s))

    def _part_ended(self, end: End) -> None:
        """A part died: it starts again, unless nothing ever worked; then trying again would only hide why."""
        if self._is_up:
            self._terminal.say(f"{end}; log: {self._keepers[end.part.name].log}")
        elif self._failed is None and not self._stop.is_set():
            self._failed = end
            self._stop.set()

    def _explain(self, end: End) -> None:
        keeper = self._keepers[end.part.name]
        lines = "\n".join(f"  {line}" for line in keeper.tail())
        self._terminal.say(f"{end.part.name} ended ({end.how}) while it started. The end of {keeper.log}:\n{lines}")

    def _asked_to_stop(self) -> None:
        now = time.monotonic()
        if self._stop_asked_at is None:
            self._stop_asked_at = now
            self._stop.set()
        elif now - self._stop_asked_at > _SECOND_THOUGHT_S:
            self._hurry.set()

    async def _end(self) -> None:
        """The gateway first, so that running answers can finish; what all need last."""
        if self._is_up:
            self._terminal.say("Ending: running answers may finish (Ctrl-C again: kill all) …")
        order = ([self._plan.gateway], self._plan.workers, [self._plan.redis])
        ending = asyncio.create_task(self._end_in_order([[self._keepers[p.name] for p in parts] for parts in order]))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((ending, hurry), return_when=asyncio.FIRST_COMPLETED)
        if self._hurry.is_set():
            await asyncio.gather(*(keeper.kill() for keeper in self._keepers.values()))
        await ending
        hurry.cancel()

    async def _end_in_order(self, groups: Sequence[Sequence[Keeper]]) -> None:
        for group in groups:
            in_time = await asyncio.gather(*(keeper.stop() for keeper in group))
            for keeper, ended in zip(group, in_time, strict=True):
                if not ended:
                    self._terminal.say(f"{keeper.part.name} did not end within {keeper.part.stop_s:.0f} s: killed")

    async def _start_guard(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hanmaru_cli.guard", "--temporary", self._running.temporary),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**self._environment, ENV_UP_ID: self._running.up_id},
            pass_fds=(self._lock,),
            start_new_session=True,
        )

    async def _keep_guard(self) -> None:
        while True:
            await self._guard.wait()
            self._guard = await self._start_guard()

    async def _end_guard(self) -> None:
        assert self._guard.stdin is not None
        if self._hurry.is_set():
            self._guard.stdin.write(NO_GRACE)
        self._guard.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._guard.wait(), _GUARD_WAIT_S)
