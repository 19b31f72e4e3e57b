"""The gateway as pods of a cluster, with a real Ray whose GCS keeps its state in a real Redis (decision 0012).

One long story instead of many: a Ray cluster takes half a minute to start on two cores.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
import redis
from hanmaru_cluster.ports import free_port
from hanmaru_contracts import keys, names
from hanmaru_testing.fleet import renewing, worker
from hanmaru_testing.gateway import eventually, tenant
from hanmaru_testing.gateway_cluster import Traffic, gateway_cluster, traffic
from hanmaru_testing.redis_server import RedisServer, user_line
from hanmaru_testing.redis_topologies import HOST, Server
from hanmaru_testing.scripted_engine_sse import scripted_engine
from redis.asyncio import Redis

WATCHED_S = 6.0
"""How long clients are watched after each fault."""
GCS_RULES = "resetchannels &RAY* ~RAY* ~DUMMY +@all -@admin -@dangerous +info"
"""As in charts/hanmaru/templates/gateway/ray-redis-configmap.yaml; a test of the chart compares them."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="hmc-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def redis_of_ray(folder: Path) -> Iterator[Server]:
    """A Redis with the one user that the chart gives Ray's head."""
    port = free_port()
    user, password = "ray", "pass-of-the-gcs"
    (folder / "gcs-password").write_text(password)
    lines = [f"port {port}", f"bind {HOST}", 'save ""', "user default off", user_line(user, password, [GCS_RULES])]
    server = Server(folder / "gcs", lines, port, port, password=password, user=user)
    try:
        server.start()
        yield server
    finally:
        server.end()


async def watched(seen: Traffic, what: str) -> None:
    """Let clients go on for a while; none may have failed, and some must have come through."""
    before = seen.whole, seen.streams
    until = time.monotonic() + WATCHED_S
    await eventually(lambda: time.monotonic() > until and seen.streams > before[1], WATCHED_S + 60)
    assert seen.failures == [], what
    assert seen.whole > before[0], what


@pytest.mark.timeout(900)
async def test_heads_come_and_go_and_nodes_are_replaced_without_a_failed_request(tmp_path: Path, short: Path) -> None:
    secret, key = b"s" * 64, keys.new_api_key()
    (tmp_path / "secret").write_bytes(secret)
    (tmp_path / "tenants.json").write_text(json.dumps({"tenants": [tenant("acme", key, ["local/tiny"])]}))
    with RedisServer(acl=True) as server, redis_of_ray(tmp_path) as gcs:
        (tmp_path / "password").write_text(server.passwords["gateway"])
        node = {
            names.ENV_REDIS_URL: server.url,
            names.ENV_REDIS_USER: "gateway",
            names.ENV_REDIS_PASSWORD_FILE: str(tmp_path / "password"),
            names.ENV_PLATFORM_SECRET_FILE: str(tmp_path / "secret"),
            names.ENV_TENANTS_FILE: str(tmp_path / "tenants.json"),
            "HANMARU_GATEWAY_LEAVE_DELAY_S": "2",
        }
        head = {
            "RAY_REDIS_ADDRESS": f"redis://{HOST}:{gcs.port}",
            "HANMARU_RAY_REDIS_USER": "ray",
            "HANMARU_RAY_REDIS_PASSWORD_FILE": str(tmp_path / "gcs-password"),
        }
        store = Redis(port=server.port)
        one = worker(store, secret)
        async with scripted_engine(one.api_key, tokens=40, token_interval_s=0.05) as engine:
            one.record = msgspec.structs.replace(one.record, address=engine.address)
            with gateway_cluster(short, head, node) as cluster:
                async with renewing(one), aiohttp.ClientSession() as client:
                    first_head = cluster.start_head()
                    a = cluster.start_node("a")
                    await cluster.until_ready("a")
                    b = cluster.start_node("b")
                    await cluster.until_ready("b")
                    await first_head.until("gateway.deployed")
                    replicas = {a.replica(), b.replica()}
                    assert None not in replicas
                    assert len(replicas) == 2

                    async with traffic(cluster, key, "tiny") as seen:
                        await watched(seen, "nothing has happened yet")

                        # The head dies: nobody notices.
                        first_head.kill()
                        await watched(seen, "without a head")

                        # Another takes its place, and takes over what runs.
                        second_head = cluster.start_head()
                        await second_head.until("gateway.deployed", times=2)
                        await watched(seen, "with a new head")
                        assert {a.replica(), b.replica()} == replicas

                        # It gives a node that joins a replica, with the settings of that node alone.
                        c = cluster.start_node("c", {"HANMARU_GATEWAY_DEFAULT_OUTPUT_TOKENS": "7"})
                        await cluster.until_ready("c")
                        assert await a.stop() == 0
                        await watched(seen, "a node has left for another")
                        assert {b.replica()} < replicas

                        # A node leaves in peace though no head is there to be told.
                        second_head.kill()
                        assert await b.stop() == 0
                        await watched(seen, "a node has left without a head")
                        assert seen.endpoints == [cluster.urls["c"]]
                        assert c.replica() is not None

                    assert seen.failures == []
                    print(f"{seen.whole} answers and {seen.streams} streams, all whole")
                    for pod in (a, b):
                        assert pod.events()[-1]["event"] == "gateway.left"
                        assert pod.events()[-1]["in_peace"] is True
                        await eventually(lambda pod=pod: not list(pod.processes()), 30)
                    async with client.get(cluster.metrics_url("c")) as metrics:
                        assert metrics.status == 200
                    assert await c.stop() == 0
        await store.aclose()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("role", "secret", "said"),
    [
        (("head",), "secret", "RAY_AUTH_TOKEN_PATH"),
        (("node", "--head", "127.0.0.2:1"), "secret", "RAY_AUTH_TOKEN_PATH"),
        (("node", "--head", "127.0.0.2:1"), "nothing-here", "nothing-here"),
    ],
)
def test_wrong_settings_are_said_before_anything_joins(
    tmp_path: Path, role: Sequence[str], secret: str, said: str
) -> None:
    (tmp_path / "secret").write_text("s" * 64)
    ended = subprocess.run(
        [sys.executable, "-m", "hanmaru_gateway.launch", *role, "--ray-folder", str(tmp_path / "ray")],
        env={"PATH": "/usr/bin", names.ENV_PLATFORM_SECRET_FILE: str(tmp_path / secret)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 2
    event = json.loads(ended.stderr.splitlines()[-1])
    assert event["event"] == "gateway.cannot_start"
    assert said in event["problem"]
    assert not (tmp_path / "ray").exists()


def test_rays_redis_lets_its_one_user_touch_nothing_else(tmp_path: Path) -> None:
    with redis_of_ray(tmp_path) as server:
        server.ask("SET", "RAYx", "1")
        for forbidden in (["SET", "hm:x", "1"], ["CONFIG", "GET", "*"], ["FLUSHALL"], ["ACL", "LIST"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                server.ask(*forbidden)
