"""The chart's start script and configuration, run by a real redis-server: who gets in, and what they may do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from hanmaru_cluster.ports import free_port
from hanmaru_contracts.redis_keys import ACL_RULES, MODELS, TENANTS
from hanmaru_testing.helm import render
from hanmaru_testing.redis_server import redis_server_path

PASSWORDS = {role: f"password of {role}"[:20].replace(" ", "-") for role in ACL_RULES}
START_S = 10.0


@contextmanager
def served(folder: Path, values: dict[str, Any], roles: Collection[str] = ACL_RULES.keys()) -> Iterator[int]:
    """Redis as the pod starts it with the passwords of these roles, its folders below `folder`; gives the port."""
    (config,) = [
        m["data"] for m in render(values) if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "hanmaru-redis"
    ]
    port = free_port()
    for name in ("etc/config", "etc/passwords", "run", "data", "bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = {"/etc/hanmaru": folder / "etc", "/run/hanmaru": folder / "run", "dir /data": f"dir {folder}/data"}
    for name, text in config.items():
        for pod, here in places.items():
            text = text.replace(pod, str(here))
        text = text.replace("port 6379", f"port {port}").replace("bind * -::*", "bind 127.0.0.1")
        (folder / "etc/config" / name).write_text(text)
    for role in roles:
        (folder / "etc/passwords" / role).write_text(PASSWORDS[role])
    (folder / "bin/redis-server").symlink_to(redis_server_path())
    environ = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(["sh", str(folder / "etc/config/start.sh")], env=environ, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                redis.Redis(port=port).ping()
            except redis.AuthenticationError:
                break  # it serves, and nobody gets in without a password
            except redis.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(tmp_path_factory.mktemp("redis"), {}) as found:
        yield found


def client(port: int, role: str) -> redis.Redis:
    return redis.Redis(port=port, username=role, password=PASSWORDS[role], decode_responses=True)


@pytest.mark.parametrize("role", ACL_RULES)
def test_a_role_gets_in_with_its_password_and_with_no_other(port: int, role: str) -> None:
    with client(port, role) as mine:
        assert mine.ping()
    other = next(name for name in ACL_RULES if name != role)
    with (
        redis.Redis(port=port, username=role, password=PASSWORDS[other]) as wrong,
        pytest.raises(redis.AuthenticationError),
    ):
        wrong.ping()


@pytest.mark.parametrize("role", ACL_RULES)
@pytest.mark.parametrize("command", ["FLUSHALL", "CONFIG GET *", "KEYS *", "ACL LIST", "SHUTDOWN", "DEBUG SLEEP 0"])
def test_no_role_may_rule_the_server(port: int, role: str, command: str) -> None:
    with client(port, role) as mine, pytest.raises(redis.exceptions.NoPermissionError):
        mine.execute_command(*command.split())


def test_a_worker_sees_no_tenants_and_everybody_the_models(port: int) -> None:
    for role in ACL_RULES.keys() - {"tier"}:
        with client(port, role) as mine:
            mine.exists(MODELS)
    with client(port, "tier") as tier, pytest.raises(redis.exceptions.NoPermissionError):
        tier.get(MODELS)
    with client(port, "worker") as worker, pytest.raises(redis.exceptions.NoPermissionError):
        worker.get(TENANTS)


def test_a_role_without_a_password_is_no_user(tmp_path: Path) -> None:
    with served(tmp_path, {}, roles=ACL_RULES.keys() - {"tier"}) as port:
        for password in ("", PASSWORDS["tier"]):
            nobody = redis.Redis(port=port, username="tier", password=password)
            with nobody, pytest.raises(redis.AuthenticationError):
                nobody.ping()


def test_the_users_file_holds_no_password(tmp_path: Path) -> None:
    with served(tmp_path, {}):
        users = tmp_path / "run/users.acl"
        assert users.stat().st_mode & 0o077 == 0
        assert not [password for password in PASSWORDS.values() if password in users.read_text()]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    def survives(values: dict[str, Any], folder: Path) -> bool:
        with served(folder, values) as first, client(first, "worker") as worker:
            worker.sadd(MODELS, "a/b")
        for link in (folder / "bin").iterdir():
            link.unlink()
        with served(folder, values) as again, client(again, "worker") as worker:
            return bool(worker.exists(MODELS))

    assert not survives({}, tmp_path / "off")
    assert survives({"redis": {"persistence": {"enabled": True}}}, tmp_path / "on")
