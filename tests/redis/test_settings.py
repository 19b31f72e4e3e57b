"""What a process is told of Redis fits together, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_redis import UNREACHABLE
from hanmaru_redis.explaining import explain
from hanmaru_redis.opening import Patience, open_redis
from hanmaru_redis.settings import REDIS_FROM_ENVIRONMENT, Credentials, RedisSettings, read_access
from hanmaru_testing.certificates import tls_files


def read(path: Path, what: str) -> str:
    return path.read_text()


def test_everything_has_a_variable() -> None:
    assert REDIS_FROM_ENVIRONMENT.keys() == RedisSettings.model_fields.keys()


def test_nothing_told_is_the_redis_of_this_machine() -> None:
    access = read_access({"HANMARU_REDIS_USER": ""}, read)
    assert [str(host) for host in access.address.hosts] == ["127.0.0.1:6379"]
    assert (access.credentials, access.sentinel, access.tls) == (Credentials(), Credentials(), None)


def test_everything_can_be_told(tmp_path: Path) -> None:
    files = tls_files(tmp_path, "redis")
    for name in ("own", "sentinel"):
        (tmp_path / name).write_text(f"{name}'s password")
    told = {
        "URL": "rediss+sentinel://a/m",
        "USER": "gateway",
        "PASSWORD_FILE": str(tmp_path / "own"),
        "CA_FILE": str(files.ca),
        "CERT_FILE": str(files.cert),
        "KEY_FILE": str(files.key),
        "SERVER_NAME": "redis",
        "SENTINEL_USER": "watcher",
        "SENTINEL_PASSWORD_FILE": str(tmp_path / "sentinel"),
    }
    access = read_access({f"HANMARU_REDIS_{name}": value for name, value in told.items()}, read)
    assert access.credentials == Credentials("gateway", "own's password")
    assert access.sentinel == Credentials("watcher", "sentinel's password")
    assert access.tls is not None
    assert access.tls.name == "redis"
    assert "password" not in repr(access).replace("password=", "")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"URL": "redis://x@y"}, "no user and no password"),
        ({"CA_FILE": "/ca"}, "write rediss instead of redis"),
        ({"SERVER_NAME": "redis"}, "write rediss instead of redis"),
        ({"URL": "rediss://r", "CERT_FILE": "/c"}, "both its certificate's and its key's file"),
        ({"URL": "rediss://r", "CA_FILE": "/nowhere"}, "the authorities for Redis cannot be read from /nowhere"),
        ({"URL": "rediss://r", "CA_FILE": __file__}, "the authorities for Redis cannot be read from"),
    ],
)
def test_what_does_not_fit_together_is_refused(told: dict[str, str], said: str) -> None:
    with pytest.raises(HanmaruError) as caught:
        read_access({f"HANMARU_REDIS_{name}": value for name, value in told.items()}, read)
    assert said in caught.value.message


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    files = tls_files(tmp_path, "redis")
    tls = RedisSettings(redis_url="rediss://r", redis_ca_file=files.ca).redis_access(read).tls
    assert tls is not None
    before = tls.context()
    assert tls.context() is before
    tls_files(tmp_path, "redis")
    after = tls.context()
    assert after is not before
    assert after.get_ca_certs() != before.get_ca_certs()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("ca.crt", "the authorities for Redis cannot be read from {}: FileNotFoundError"),
        ("tls.crt", "the client certificate for Redis and its key cannot be read from {}: FileNotFoundError"),
    ],
)
async def test_a_file_that_is_gone_after_the_start_is_named(tmp_path: Path, gone: str, said: str) -> None:
    files = tls_files(tmp_path, "redis")
    settings = RedisSettings(
        redis_url="rediss://127.0.0.1:1", redis_ca_file=files.ca, redis_cert_file=files.cert, redis_key_file=files.key
    )
    client = open_redis(settings.redis_access(read), "hanmaru-test", Patience(1.0, 1.0))
    (tmp_path / gone).unlink()
    with pytest.raises(UNREACHABLE) as caught:
        await client.get("x")
    assert explain(caught.value) == said.format(tmp_path / gone)
    await client.aclose()
