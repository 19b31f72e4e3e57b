"""`hanmaru up`: the main job on one machine, in one terminal, from Redis to the gateway; Ctrl-C ends all of it.

Takes the state folder's lock, writes the planned files, and hands over to `session`, which runs the parts. What runs
and with which files is decided in `laptop`. Called by `main`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import psutil
from hanmaru_contracts import keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.redis_keys import ACL_RULES

from hanmaru_cli import laptop, ports
from hanmaru_cli.laptop import Options, Plan, Secrets
from hanmaru_cli.marks import ENV_UP_ID, kill_marked
from hanmaru_cli.redis_process import find_server
from hanmaru_cli.session import Session
from hanmaru_cli.state import Running, StateFolder
from hanmaru_cli.terminal import Terminal

LOCK_WAIT_S = 20.0
"""The guard of a killed run needs its grace and a few seconds more."""
_LOOK_INTERVAL_S = 0.5


class Planner(Protocol):
    """Decides what runs; `laptop.make_plan` does, and a test's own may."""

    def __call__(
        self,
        options: Options,
        *,
        ports: Mapping[str, int],
        secrets: Secrets,
        root: Path,
        temporary: Path,
        redis_server: Path,
    ) -> Plan:
        """The plan for these ports; files go below `root`, sockets below `temporary`."""
        ...


def run(
    options: Options,
    home: Path,
    environment: Mapping[str, str],
    terminal: Terminal,
    *,
    planner: Planner = laptop.make_plan,
) -> int:
    """Start everything, stay until asked to end, end everything. Returns the exit status."""
    state = StateFolder(home)
    state.prepare()
    lock = _lock(state, terminal)
    if lock is None:
        return _say_running(state, terminal)
    try:
        kept = _kept_secrets(state)
        plan, running = _prepare(options, planner, kept, state, terminal)
        state.write_running(running)
        session = Session(
            plan,
            running,
            api_key=kept.api_keys[laptop.DEMO],
            state=state,
            lock=lock,
            environment=laptop.inherited(environment),
            terminal=terminal,
        )
        return asyncio.run(session.run())
    finally:
        state.forget_running()
        os.close(lock)


def _lock(state: StateFolder, terminal: Terminal) -> int | None:
    """The state folder's lock; None when another run holds it. Waits for the guard of a killed run."""
    deadline = time.monotonic() + LOCK_WAIT_S
    said = False
    while (lock := state.try_lock()) is None and time.monotonic() < deadline:
        earlier = state.read_running()
        if earlier is not None and earlier.lives():
            return None
        if earlier is not None and not said:
            terminal.say("an earlier run was killed; waiting until its processes are gone …")
            said = True
        time.sleep(_LOOK_INTERVAL_S)
    return lock


def _say_running(state: StateFolder, terminal: Terminal) -> int:
    running = state.read_running()
    if running is None or not running.lives():
        raise HanmaruError(
            ErrorCode.CONFIGURATION, f"another `hanmaru up` is using {state.root}; try again in a moment"
        )
    terminal.say(
        f"Hanmaru {'is already up' if running.ready else 'is already starting'}: {running.http_url} "
        f"(process {running.pid}, key in {state.root / laptop.key_file(laptop.DEMO)}).\n"
        "It goes on as it is; `hanmaru down` ends it."
    )
    return 0


def _prepare(
    options: Options, planner: Planner, kept: Secrets, state: StateFolder, terminal: Terminal
) -> tuple[Plan, Running]:
    """Ports and files; nothing runs yet."""
    earlier = state.read_running()
    if earlier is not None:  # it and its guard were both killed
        kill_marked({ENV_UP_ID: earlier.up_id})
        shutil.rmtree(earlier.temporary, ignore_errors=True)
    wanted = laptop.wanted_ports(options)
    chosen = ports.choose(wanted, ports.is_free)
    for sentence in ports.moved(wanted, chosen):
        terminal.say(sentence)
    temporary = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    try:
        plan = planner(
            options,
            ports=chosen,
            secrets=kept,
            root=state.root,
            temporary=temporary,
            redis_server=find_server(),
        )
        for path, content in plan.files.items():
            state.write(path, content)
    except BaseException:
        temporary.rmdir()
        raise
    running = Running(
        pid=os.getpid(),
        up_id=secrets.token_hex(8),
        started_at=psutil.Process().create_time(),
        ready=False,
        http_url=f"http://{ports.LOOPBACK}:{chosen['gateway HTTP']}",
        grpc_address=f"{ports.LOOPBACK}:{chosen['gateway gRPC']}",
        metrics_url=f"http://{ports.LOOPBACK}:{chosen['gateway metrics']}/metrics",
        route=plan.route,
        otlp_endpoint=options.otlp_endpoint,
        temporary=str(temporary),
        logs=str(state.logs),
    )
    return plan, running


def _kept_secrets(state: StateFolder) -> Secrets:
    return Secrets(
        platform=state.keep(laptop.PLATFORM_SECRET, lambda: secrets.token_hex(32)),
        redis={role: state.keep(laptop.password_file(role), lambda: secrets.token_hex(32)) for role in ACL_RULES},
        api_keys={tenant: state.keep(laptop.key_file(tenant), keys.new_api_key) for tenant in laptop.TENANTS},
    )
