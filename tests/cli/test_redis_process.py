from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from hanmaru_cli.ports import LOOPBACK
from hanmaru_cli.redis_process import find_server, render_acl, render_config, version_of
from hanmaru_contracts.redis_keys import ACL_RULES
from hanmaru_testing.engine import free_loopback_port

PASSWORDS = {role: f"password-of-{role}" for role in ACL_RULES}


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("Redis server v=6.2.5 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64", (6, 2)),
        ("Redis server v=7.0.15 sha=00000000:0", (7, 0)),
        ("Valkey server v=8.1.1 sha=00000000:0", (8, 1)),
        ("nonsense", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_what_the_server_prints(answer: str, version: tuple[int, int] | None) -> None:
    assert version_of(answer) == version


@pytest.mark.parametrize(("version", "is_taken"), [("6.2.0", True), ("6.0.16", False)])
def test_the_servers_own_redis_is_taken_when_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_taken: bool
) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (find_server() == program) is is_taken


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    port = free_loopback_port()
    (folder / "users.acl").write_text(render_acl(PASSWORDS))
    config = folder / "redis.conf"
    config.write_text(render_config(port=port, folder=folder, acl_file=folder / "users.acl"))
    with subprocess.Popen([find_server(), config], stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    redis.Redis(port=port, username="gateway", password=PASSWORDS["gateway"]).ping()
                    break
                except redis.ConnectionError:
                    assert server.poll() is None, "redis-server did not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def test_a_real_server_starts_from_the_files_and_lets_each_role_do_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    with _server(folder) as port:
        with redis.Redis(LOOPBACK, port, username="worker", password=PASSWORDS["worker"]) as worker:
            assert worker.set("hm:{local/tiny}:worker:a", b"lease", px=5000)
            with pytest.raises(redis.exceptions.NoPermissionError):
                worker.get("hm:{tenants}:specs")
            with pytest.raises(redis.exceptions.NoPermissionError):
                worker.flushall()
        with redis.Redis(LOOPBACK, port) as nobody, pytest.raises(redis.exceptions.AuthenticationError):
            nobody.get("hm:models")
        with redis.Redis("127.0.0.2", port) as neighbour, pytest.raises(redis.ConnectionError, match="refused"):
            neighbour.ping()
    assert not list(folder.glob("*.rdb"))


def test_the_acl_file_holds_no_password() -> None:
    assert not any(password in render_acl(PASSWORDS) for password in PASSWORDS.values())
