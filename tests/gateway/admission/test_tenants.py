"""A tenants file reaches every gateway's directory through Redis, and survives a Redis that is gone or emptied."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.keys import api_key_digest
from hanmaru_contracts.redis_keys import TENANTS, TENANTS_VERSION
from hanmaru_gateway.admission.identity import Directory
from hanmaru_gateway.admission.tenants import TenantFileSource, TenantStore
from hanmaru_testing.redis_server import RedisServer
from redis.asyncio import Redis

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def _write(path: Path, *names: str) -> None:
    """A file with these tenants, each with the key `key-<name>`; replaced as editors do, by a rename."""
    tenants = [
        {"name": name, "credentials": [{"name": "k", "apiKey": {"sha256": api_key_digest(f"key-{name}")}}]}
        for name in names
    ]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"tenants": tenants}))
    os.replace(fresh, path)  # noqa: PTH105 - Path.replace is the same call


def _knows(directory: Directory, name: str) -> bool:
    try:
        return directory.identify(f"Bearer key-{name}", NOW).tenant == name
    except HanmaruError:
        return False


async def test_a_file_reaches_the_directory(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a", "b")
    store = TenantStore(redis)
    await store.step()
    assert not store.loaded.is_set()
    await TenantFileSource(redis, path).step()
    await store.step()
    assert store.loaded.is_set()
    assert _knows(store.directory, "a")
    assert _knows(store.directory, "b")


async def test_a_tenant_that_left_the_file_leaves_redis_and_the_directory(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    source, store = TenantFileSource(redis, path), TenantStore(redis)
    _write(path, "a", "b")
    await source.step()
    await store.step()
    _write(path, "b")
    await source.step()
    await store.step()
    assert await redis.hgetall(TENANTS) == {b"b": (await redis.hgetall(TENANTS))[b"b"]}
    assert not _knows(store.directory, "a")
    _write(path)
    await source.step()
    await store.step()
    assert await redis.hgetall(TENANTS) == {}
    assert len(store.directory) == 0


async def test_redis_holds_no_key(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    await TenantFileSource(redis, path).step()
    assert b"key-a" not in b"".join((await redis.hgetall(TENANTS)).values())


async def test_a_change_is_in_force_within_two_seconds(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    store = TenantStore(redis)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(TenantFileSource(redis, path).run()), tasks.create_task(store.run())]
        await store.loaded.wait()
        start = time.monotonic()
        _write(path, "b")
        while not _knows(store.directory, "b"):  # noqa: ASYNC110 - the directory is replaced, nothing announces it
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - start
        for task in running:
            task.cancel()
    assert took_s < 2.0
    assert not _knows(store.directory, "a")


async def test_a_broken_file_keeps_what_was_and_says_so_once(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    source, store = TenantFileSource(redis, path), TenantStore(redis)
    await source.step()
    path.write_text("tenants: [{name: b, credentials: [{name: k, apiKey: {sha256: hmk_oops}}]}]")
    for _ in range(3):
        await source.step()
    await store.step()
    assert _knows(store.directory, "a")
    broken = [record for record in caplog.records if record.getMessage() == "tenants.file_broken"]
    assert len(broken) == 1
    assert "hmk_oops" not in str(vars(broken[0]))
    path.unlink()
    await source.step()
    await store.step()
    assert _knows(store.directory, "a")


async def test_a_file_that_comes_later_is_read(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    source = TenantFileSource(redis, path)
    await source.step()
    assert await redis.exists(TENANTS_VERSION) == 0
    _write(path, "a")
    await source.step()
    assert await redis.exists(TENANTS_VERSION) == 1


async def test_an_emptied_redis_is_filled_again_and_keys_work_meanwhile(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    source, store = TenantFileSource(redis, path), TenantStore(redis)
    await source.step()
    await store.step()
    redis_server.restart_empty()
    await store.step()
    assert _knows(store.directory, "a")
    await source.step()
    fresh = TenantStore(redis)
    await fresh.step()
    assert _knows(fresh.directory, "a")


@pytest.mark.parametrize("half", [TENANTS, TENANTS_VERSION])
async def test_half_of_what_redis_held_is_as_good_as_nothing(redis: Redis, tmp_path: Path, half: str) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    source = TenantFileSource(redis, path)
    await source.step()
    await redis.delete(half)
    await source.step()
    assert await redis.exists(TENANTS, TENANTS_VERSION) == 2


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_without_redis_the_directory_stays(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    source, store = TenantFileSource(redis, path), TenantStore(redis)
    await source.step()
    await store.step()
    getattr(redis_server, fault)()
    start = time.monotonic()
    for _ in range(2):
        await source.step()
        await store.step()
    assert time.monotonic() - start < 8
    assert _knows(store.directory, "a")
    gone = [record for record in caplog.records if record.getMessage() == "tenants.store_unreachable"]
    assert len(gone) == 2, "once for the source, once for the store"
    _write(path, "b")
    if fault == "stop":
        redis_server.start()
    redis_server.resume()
    await source.step()
    await store.step()
    assert _knows(store.directory, "b")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("bad", b"not json"),
        ("bad", b"[]"),
        ("bad", b"\xff\xfe"),
        ("Bad}name", b"{}"),
        (b"\xff", b"{}"),
        ("", b"{}"),
    ],
)
async def test_a_malformed_entry_is_left_out_and_said(
    redis: Redis, tmp_path: Path, name: str | bytes, spec: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tenants.yaml"
    _write(path, "a")
    await TenantFileSource(redis, path).step()
    await redis.hset(TENANTS, name, spec)
    await redis.set(TENANTS_VERSION, "another")
    store = TenantStore(redis)
    await store.step()
    assert _knows(store.directory, "a")
    assert len(store.directory) == 1
    assert [r.levelno for r in caplog.records if r.getMessage() == "tenants.entry_skipped"] == [logging.ERROR]


async def test_two_gateways_with_different_files_do_not_fight(redis: Redis, tmp_path: Path) -> None:
    older, newer = tmp_path / "older.yaml", tmp_path / "newer.yaml"
    _write(older, "a")
    _write(newer, "b")
    sources = [TenantFileSource(redis, older), TenantFileSource(redis, newer)]
    store = TenantStore(redis)
    for _ in range(3):
        for source in sources:
            await source.step()
        await store.step()
        assert _knows(store.directory, "b"), "the file read last holds until it changes"
