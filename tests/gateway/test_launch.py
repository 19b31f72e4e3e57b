"""`hanmaru gateway` as a process with a real Ray: it serves, is replaced without a refusal, and leaves no trace."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from hanmaru_contracts import keys, names
from hanmaru_testing.fleet import renewing, worker
from hanmaru_testing.gateway import tenant
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.scripted_engine_sse import scripted_engine
from redis.asyncio import Redis

START_DEADLINE_S = 120.0
STOP_DEADLINE_S = 60.0
PORTS = ("--http-port", "--grpc-port", "--metrics-port", "--ray-port")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Launched:
    """A running `hanmaru gateway`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def events(self) -> list[dict[str, Any]]:
        """Its own log lines (Ray puts others between them)."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until(self, event: str) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not any(line["event"] == event for line in self.events()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.2)

    async def ends(self) -> int:
        deadline = time.monotonic() + STOP_DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.1)
        return self.process.returncode


@contextmanager
def launched(log: Path, environment: dict[str, str], *arguments: str) -> Iterator[Launched]:
    """In a session of its own, as whoever starts it should."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "hanmaru_gateway.launch", *arguments],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Launched(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that were started with this test's temporary folder."""
    marker = f"TMPDIR={folder}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            if marker in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(" ".join(process.cmdline()))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: Ray puts Unix sockets below TMPDIR. The test leaves it empty."""
    folder = Path(tempfile.mkdtemp(prefix="hmt-", dir="/tmp"))
    yield folder
    left, files = left_over(folder), list(folder.iterdir())
    shutil.rmtree(folder)
    assert left == []
    assert files == []


def token_of(folder: Path) -> str:
    """File of the key to the Ray whose files are below the folder."""
    return str(next(folder.glob("*/token")))


@pytest.mark.timeout(300)
async def test_a_gateway_on_ray_serves_is_replaced_and_ends_without_a_trace(tmp_path: Path, short: Path) -> None:
    secret, key = b"s" * 64, keys.new_api_key()
    (tmp_path / "secret").write_bytes(secret)
    (tmp_path / "tenants.json").write_text(json.dumps({"tenants": [tenant("acme", key, ["local/tiny"])]}))
    http_port, grpc_port, metrics_port, ray_port, other_port = free_ports(5)
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with RedisServer(acl=True) as server:
        (tmp_path / "password").write_text(server.passwords["gateway"])
        environment = {
            "TMPDIR": str(short),
            names.ENV_REDIS_URL: server.url,
            names.ENV_REDIS_USER: "gateway",
            names.ENV_REDIS_PASSWORD_FILE: str(tmp_path / "password"),
            names.ENV_PLATFORM_SECRET_FILE: str(tmp_path / "secret"),
            names.ENV_TENANTS_FILE: str(tmp_path / "tenants.json"),
        }
        redis = Redis(port=server.port)
        one = worker(redis, secret)
        async with scripted_engine(one.api_key, tokens=200, token_interval_s=0.05) as engine:
            one.record = msgspec.structs.replace(one.record, address=engine.address)
            async with renewing(one), aiohttp.ClientSession(f"http://127.0.0.1:{http_port}") as client:
                client.headers["Authorization"] = f"Bearer {key}"
                with launched(
                    tmp_path / "log",
                    environment,
                    *ports,
                    *("--metrics-port", str(metrics_port), "--ray-port", str(ray_port)),
                ) as gateway:
                    await gateway.until("gateway.ready")

                    with launched(tmp_path / "second.log", environment, *ports) as second:
                        assert await second.ends() == 2
                        assert str(http_port) in second.events()[-1]["problem"]

                    cluster = {"RAY_ADDRESS": f"127.0.0.1:{ray_port}"}
                    cluster["RAY_AUTH_TOKEN_PATH"] = token_of(short)
                    await _is_replaced_without_a_refusal(
                        client,
                        tmp_path / "third.log",
                        {**environment, **cluster},
                        [*ports, "--metrics-port", str(other_port)],
                    )

                    # Its successor has the new settings, so it did replace it.
                    async with client.get(f"http://127.0.0.1:{other_port}/metrics") as response:
                        assert response.status == 200

                    running = await _stream(client, tokens=60)
                    gateway.process.send_signal(signal.SIGTERM)
                    assert (await running.read()).endswith(b"data: [DONE]\n\n")
                    assert await gateway.ends() == 0
        await redis.aclose()


async def _stream(client: aiohttp.ClientSession, tokens: int) -> aiohttp.ClientResponse:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": tokens}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status == 200, await response.text()
    await response.content.readany()
    return response


async def _is_replaced_without_a_refusal(
    client: aiohttp.ClientSession, log: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    """Deploy other settings to the running cluster, with a stream open and a client that connects all the time."""
    running = await _stream(client, tokens=150)
    statuses: set[int] = set()
    with launched(log, environment, *arguments) as replacing:
        ready = asyncio.create_task(replacing.until("gateway.ready"))
        while not ready.done():
            async with client.get("/health", headers={"Connection": "close"}) as response:
                statuses.add(response.status)
            await asyncio.sleep(0.02)
        await ready
        replacing.process.kill()  # SIGTERM would take the application down
    assert statuses == {200}
    assert (await running.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("which", PORTS)
def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path, which: str) -> None:
    (tmp_path / "secret").write_text("s")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "hanmaru_gateway.launch", *free_arguments(which, port)],
            env={**os.environ, names.ENV_PLATFORM_SECRET_FILE: str(tmp_path / "secret")},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert ended.returncode == 2
    said = json.loads(ended.stderr.splitlines()[-1])
    assert said["event"] == "gateway.cannot_start"
    assert str(port) in said["problem"]
    assert "Traceback" not in ended.stderr


@pytest.mark.timeout(60)
def test_a_secret_that_cannot_be_read_is_said_before_anything_starts(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "hanmaru_gateway.launch", *free_arguments("--http-port", free_ports(1)[0])],
        env={**os.environ, names.ENV_PLATFORM_SECRET_FILE: str(tmp_path / "nothing-here")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 2
    assert "nothing-here" in json.loads(ended.stderr.splitlines()[-1])["problem"]
    assert "Traceback" not in ended.stderr


def free_arguments(which: str, port: int) -> list[str]:
    wanted = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    wanted[which] = str(port)
    return [word for pair in wanted.items() for word in pair]
