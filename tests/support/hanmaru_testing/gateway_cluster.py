"""A gateway as it runs on a cluster, on one machine: real `hanmaru gateway head` and `node` processes side by side.

Each stands for a pod: all processes it starts inherit a mark, so that a pod can be killed whole and nothing stays.
`Traffic` stands for clients behind a Service: it asks each node whether it is ready, and sends to those that are.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from hanmaru_gateway.ray_start import NUM_PORTS

ADDRESS = "127.0.0.2"
"""Of every pod. Ray takes 127.0.0.1 for a mistake and puts the machine's own address in its place."""
READY_DEADLINE_S = 180.0
"""A node takes 12 s on idle cores, and much longer beside other tests."""
STOP_DEADLINE_S = 60.0
_MARK = "HANMARU_TEST_POD"
_MAX_PODS = 8


class Pod:
    """One head or node, with everything it started."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.mark = f"{_MARK}={folder.name}-{name}"
        self.log = folder / f"{name}.log"
        variable, _, value = self.mark.partition("=")
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "hanmaru_gateway.launch", *argv],
                # Titles that processes give themselves would overwrite the mark.
                env={**os.environ, **environment, variable: value, "SPT_NOENV": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> Iterator[int]:
        """Ids of all that carry its mark and have not ended."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name)

    def replica(self) -> int | None:
        """Process of its gateway replica."""
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                    return pid
        return None

    def kill(self) -> None:
        """As a pod ends whose node has lost its power."""
        for _ in range(3):
            for pid in self.processes():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    async def stop(self) -> int:
        """As Kubernetes ends a pod. Its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        deadline = time.monotonic() + STOP_DEADLINE_S
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                # Where each of its threads is goes into its log.
                self.process.send_signal(signal.SIGABRT)
                self.process.wait(STOP_DEADLINE_S)
                raise AssertionError(f"it has not ended: {self.log.read_text(errors='replace')}")
            await asyncio.sleep(0.1)
        return self.process.returncode

    def events(self) -> list[dict[str, Any]]:
        """Its own log lines (Ray puts others between them)."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until(self, event: str, times: int = 1) -> None:
        """Wait until it has logged the event so often."""
        deadline = time.monotonic() + READY_DEADLINE_S
        while sum(line["event"] == event for line in self.events()) < times:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            await asyncio.sleep(0.2)


@dataclass
class GatewayCluster:
    """Pods that share a head's address. `gateway_cluster` makes it."""

    folder: Path
    head_environment: Mapping[str, str]
    node_environment: Mapping[str, str]
    first_port: int
    pods: list[Pod] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)
    """Of every node that was started, by its name."""

    def start_head(self) -> Pod:
        """The head, at the same address each time, as its Service gives it."""
        ray = ["--address", ADDRESS, "--ray-port", str(self.first_port), "--ray-folder", str(self.folder / "h")]
        return self._start("head", ["head", *ray], self.head_environment)

    def start_node(self, name: str, settings: Mapping[str, str] | None = None) -> Pod:
        """Another node, whose environment has these settings on top."""
        number = len(self.urls) + 1
        http = self.first_port + _MAX_PODS * NUM_PORTS + 3 * number
        ports = {"HTTP": http, "GRPC": http + 1, "METRICS": http + 2}
        listens = {f"HANMARU_GATEWAY_{what}_PORT": str(port) for what, port in ports.items()}
        self.urls[name] = f"http://127.0.0.1:{http}"
        ray_port = self.first_port + number * NUM_PORTS
        argv = ["node", "--head", f"{ADDRESS}:{self.first_port}", "--address", ADDRESS]
        argv += ["--ray-port", str(ray_port), "--ray-folder", str(self.folder / f"n{number}")]
        return self._start(name, argv, {**self.node_environment, **listens, **(settings or {})})

    def metrics_url(self, name: str) -> str:
        """Where a node's metrics are."""
        address, _, port = self.urls[name].rpartition(":")
        return f"{address}:{int(port) + 2}/metrics"

    async def until_ready(self, *names: str) -> None:
        """Wait until these nodes answer that they are."""
        deadline = time.monotonic() + READY_DEADLINE_S
        async with aiohttp.ClientSession() as client:
            for name in names:
                while not await is_ready(client, self.urls[name]):
                    for pod in self.pods:
                        assert pod.process.poll() in (None, 0, -signal.SIGKILL), pod.log.read_text(errors="replace")
                    assert time.monotonic() < deadline, f"{name} is not ready after {READY_DEADLINE_S:g} s"
                    await asyncio.sleep(0.3)

    def _start(self, name: str, argv: list[str], environment: Mapping[str, str]) -> Pod:
        pod = Pod(name, argv, environment, self.folder)
        self.pods.append(pod)
        return pod


@contextmanager
def gateway_cluster(
    folder: Path, head_environment: Mapping[str, str], node_environment: Mapping[str, str]
) -> Iterator[GatewayCluster]:
    """Nothing runs yet. `folder` has a short path: Ray puts Unix sockets below it. All is killed with the block."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    both = {"RAY_AUTH_TOKEN_PATH": str(token)}
    cluster = GatewayCluster(
        folder, {**head_environment, **both}, {**node_environment, **both}, _free_block((_MAX_PODS + 1) * NUM_PORTS)
    )
    try:
        yield cluster
    finally:
        for pod in cluster.pods:
            pod.kill()


async def is_ready(client: aiohttp.ClientSession, url: str) -> bool:
    """Whether it says so, as a kubelet would ask."""
    try:
        async with client.get(f"{url}/ready", timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


@dataclass
class Traffic:
    """What clients have seen."""

    whole: int = 0
    streams: int = 0
    failures: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)


@asynccontextmanager
async def traffic(cluster: GatewayCluster, key: str, model: str) -> AsyncIterator[Traffic]:
    """Clients of their own connections and one with kept ones, whole answers and streams, until the block ends."""
    seen = Traffic()
    stop = asyncio.Event()
    headers = {"Authorization": f"Bearer {key}"}

    async def ask(client: aiohttp.ClientSession, url: str, *, stream: bool) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 40}
        try:
            async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            seen.failures.append(f"{url} {type(error).__name__}")
            return
        if answer.status != 200 or (stream and not text.endswith(b"data: [DONE]\n\n")) or b'"error"' in text:
            seen.failures.append(f"{url} {answer.status} {text[-200:]!r}")
        elif stream:
            seen.streams += 1
        else:
            seen.whole += 1

    async def follow_endpoints() -> None:
        async with aiohttp.ClientSession() as client:
            while not stop.is_set():
                seen.endpoints = [url for url in cluster.urls.values() if await is_ready(client, url)]
                await asyncio.sleep(0.2)

    async def keep_asking(number: int, *, stream: bool, keeps: bool) -> None:
        async with AsyncExitStack() as stack:
            kept = await stack.enter_async_context(aiohttp.ClientSession())
            turn = number
            while not stop.is_set():
                if seen.endpoints:
                    url = seen.endpoints[turn % len(seen.endpoints)]
                    turn += 1
                    if keeps:
                        await ask(kept, url, stream=stream)
                    else:
                        async with aiohttp.ClientSession() as once:
                            await ask(once, url, stream=stream)
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow_endpoints())
        for number in range(2):
            group.create_task(keep_asking(number, stream=True, keeps=False))
            group.create_task(keep_asking(number, stream=False, keeps=bool(number)))
        yield seen
        stop.set()


def _free_block(length: int) -> int:
    """The first of so many ports that nobody listens on."""
    for first in range(21_000, 32_000 - length, length):
        if all(_is_free(port) for port in range(first, first + length)):
            return first
    raise AssertionError(f"no {length} free ports in a row below 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
