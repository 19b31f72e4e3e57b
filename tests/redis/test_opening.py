"""Every kind of Redis, with TLS and without: the three programs meet there, each with its role's rights and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import RequestId
from hanmaru_gateway.app import open_gateway
from hanmaru_gateway.settings import Settings
from hanmaru_redis import UNREACHABLE, RedisError
from hanmaru_redis.explaining import explain
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.slots import slot_of
from hanmaru_testing.certificates import TlsFiles, tls_files
from hanmaru_testing.redis_topologies import HOST, Installation, cluster, sentinel, serving, single
from hanmaru_testing.redis_world import REPLICA, TENANTS, world

pytestmark = pytest.mark.timeout(90)
KINDS = {"single": single, "sentinel": sentinel, "cluster": cluster}
EVERY = [(kind, has_tls) for kind in KINDS for has_tls in (False, True)]


def name_of(how: tuple[str, bool]) -> str:
    return f"{how[0]}-{'tls' if how[1] else 'plain'}"


def only(chosen: list[tuple[str, bool]]) -> pytest.MarkDecorator:
    """The test is for these installations."""
    return pytest.mark.parametrize("installation", chosen, indirect=True, ids=name_of)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return tls_files(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture(scope="module", params=EVERY, ids=name_of)
def installation(
    request: pytest.FixtureRequest, files: TlsFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    kind, has_tls = request.param
    with KINDS[kind](tmp_path_factory.mktemp(kind), tls=files if has_tls else None) as made:
        yield made


async def problem(installation: Installation, role: str = "gateway", **changes: Any) -> str:
    """What is said when somebody connects so."""
    client = open_redis(installation.access(role, **changes), "hanmaru-test", Patience(1.0, 1.0))
    try:
        await client.get(redis_keys.TENANTS_VERSION)
    except UNREACHABLE as error:
        return explain(error)
    finally:
        await client.aclose()
        await asyncio.sleep(0.1)  # refused TLS connections are torn down in the loop's next turns
    return ""


async def test_worker_operator_and_gateway_meet(installation: Installation) -> None:
    async with world(installation) as made:
        await made.until_whole(20)
        assert made.taking() == [REPLICA]
        for tenant in TENANTS:
            assert await made.request(tenant)
        await made.until_settled(10)
        assert not [key for tenant in TENANTS if (key := await made.running(tenant))]


async def test_a_gateway_is_ready_with_what_it_is_told(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 32)
    settings = Settings(
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        shutdown_timeout_s=0.5,
        platform_secret_file=tmp_path / "secret",
        **installation.settings("gateway"),
    )
    async with world(installation), open_gateway(settings, {}) as gateway, aiohttp.ClientSession() as client:
        async with asyncio.timeout(20):
            while (await client.get(f"http://127.0.0.1:{gateway.http.port}/ready")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_rights_are_those_of_the_role(installation: Installation) -> None:
    worker = open_redis(installation.access("worker"), "hanmaru-test", Patience(1.0, 1.0))
    try:
        for forbidden in (redis_keys.TENANTS_VERSION, redis_keys.reservation(TENANTS[0], RequestId("req"))):
            with pytest.raises(RedisError, match=r"(?i)permission"):
                await worker.get(forbidden)
    finally:
        await worker.aclose()


async def test_a_wrong_password_is_said(installation: Installation, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("hunter2")
    said = await problem(installation, redis_password_file=wrong)
    assert said == "Redis refuses the user or the password"


@only([how for how in EVERY if how[1]])
async def test_certificates_are_checked(installation: Installation, tmp_path: Path) -> None:
    stranger = tls_files(tmp_path, HOST)
    assert await problem(installation) == ""
    assert "certificate is not accepted" in await problem(installation, redis_ca_file=stranger.ca)
    assert "certificate is not accepted" in await problem(installation, redis_server_name="redis.example.com")
    assert await problem(installation, redis_cert_file=None, redis_key_file=None)
    assert await problem(installation, redis_cert_file=stranger.cert, redis_key_file=stranger.key)


async def test_a_certificate_for_another_name_is_accepted_under_that_name(tmp_path: Path) -> None:
    files = tls_files(tmp_path / "tls", "redis.example.com")
    with single(tmp_path / "redis", tls=files) as installation:
        assert "certificate is not accepted" in await problem(installation)
        assert await problem(installation, redis_server_name="redis.example.com") == ""


@only([how for how in EVERY if how[0] == "single"])
async def test_a_server_taken_for_a_clusters_node_is_said(installation: Installation) -> None:
    said = await problem(installation, redis_url=installation.url.replace("://", "+cluster://"))
    assert said == "the server is no node of a Redis Cluster; write redis:// in the URL"


@only([how for how in EVERY if how[0] == "cluster"])
async def test_a_clusters_node_taken_for_a_server_is_said(installation: Installation) -> None:
    slot = slot_of(("GET", redis_keys.TENANTS_VERSION))
    assert slot is not None
    other = next(node for node in installation.servers if node is not serving(installation, slot))
    scheme = installation.url.partition("+")[0]
    said = await problem(installation, redis_url=f"{scheme}://{HOST}:{other.port}")
    assert said == "the server belongs to a Redis Cluster; write redis+cluster:// in the URL"
