"""Settings: the file decides, the environment wins, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineType
from hanmaru_operator.render.settings import RedisFile
from hanmaru_operator.settings import Settings, read_secret, read_settings

Read = Callable[..., Settings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_it(file: Mapping[str, object] | None = None, **environ: str) -> Settings:
        given = {"POD_NAMESPACE": "hanmaru", "HANMARU_PLATFORM_SECRET_FILE": "/secret", **environ}
        if file is not None:
            path = tmp_path / "settings.yaml"
            path.write_text(yaml.safe_dump(dict(file)))
            given["HANMARU_OPERATOR_SETTINGS_FILE"] = str(path)
        return read_settings({name: value for name, value in given.items() if value}, hostname="host-1")

    return read_it


def test_little_is_needed(read: Read) -> None:
    settings = read()
    assert settings.tenant_namespaces == ("hanmaru",)
    assert settings.pod_name == "host-1"
    assert settings.render.gateway_namespace == "hanmaru"
    assert settings.render.redis_url == settings.redis_url
    assert not settings.render.redis_files


def test_the_environment_wins_over_the_file(read: Read) -> None:
    settings = read({"redisUrl": "redis://file:1/0", "podName": "file"}, HANMARU_REDIS_URL="redis://env:1/0")
    assert settings.redis_url == "redis://env:1/0"
    assert settings.pod_name == "file"


def test_workers_reach_the_operators_redis_as_it_does(read: Read) -> None:
    own = {
        "redisUrl": "rediss+sentinel://s/m",
        "redisCaFile": "/ca",
        "redisServerName": "redis",
        "workerRedisUser": "w",
    }
    settings = read(own)
    assert settings.worker_redis_files == {RedisFile.CA: Path("/ca")}
    assert (settings.render.redis_url, settings.render.redis_server_name) == ("rediss+sentinel://s/m", "redis")
    given = {
        "workerRedisCaFile": "/other",
        "workerRedisCertFile": "/cert",
        "workerRedisKeyFile": "/key",
        "workerRedisPasswordFile": "",
        "workerRedisSentinelPasswordFile": "/sentinel",
    }
    told = {
        RedisFile.CA: "/other",
        RedisFile.CERT: "/cert",
        RedisFile.KEY: "/key",
        RedisFile.SENTINEL_PASSWORD: "/sentinel",
    }
    assert read(own | given).worker_redis_files == {file: Path(path) for file, path in told.items()}
    elsewhere = read(own | {"workerRedisUrl": "redis+cluster://c"})
    assert (elsewhere.worker_redis_files, elsewhere.render.redis_server_name) == ({}, "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"redisUrl": "redis://u:hunter2@r"}, "redisUrl: Value error, a Redis URL holds no user and no password"),
        ({"workerRedisUrl": "http://r"}, "workerRedisUrl: a Redis URL begins with one of"),
        ({"workerRedisUrl": "redis://w", "workerRedisCaFile": "/ca"}, "write rediss instead of redis"),
        ({"redisUrl": "rediss://r", "workerRedisCertFile": "/c"}, "both its certificate's and its key's file"),
    ],
)
def test_a_redis_that_is_said_wrongly_is_refused(read: Read, given: dict[str, str], said: str) -> None:
    with pytest.raises(HanmaruError) as caught:
        read(given)
    assert said in caught.value.message
    assert "hunter2" not in caught.value.message


def test_shared_caches_have_a_redis_only_where_one_is_named(read: Read) -> None:
    assert read().render.tier is None
    assert read({"tierRedisPasswordFile": "/password"}).tier_redis_files == {}
    tier = read({"tierRedisUrl": "redis://tier:1/0", "tierRedisPasswordFile": "/password"}).render.tier
    assert tier is not None
    assert (tier.url, tier.files) == ("redis://tier:1/0", frozenset({RedisFile.PASSWORD}))
    with pytest.raises(HanmaruError, match="tierRedisUrl"):
        read({"tierRedisUrl": "memcached://tier"})
    with pytest.raises(HanmaruError, match="no TLS"):
        read({"tierRedisUrl": "redis://tier:1/0", "tierRedisCaFile": "/ca"})


def test_the_file_decides_what_an_installation_is(read: Read) -> None:
    settings = read(
        {
            "tenantNamespaces": ["a", "b"],
            "workerImages": {"SGLang": "worker:1"},
            "workerRedisPasswordFile": "/w",
            "sharedDomains": {"team": ["acme"], "all": None},
            "lease": {"leaseS": 30, "renewDeadlineS": 20, "retryS": 5},
        }
    )
    assert settings.tenant_namespaces == ("a", "b")
    assert settings.render.worker_images == {EngineType.SGLANG: "worker:1"}
    assert settings.render.redis_files == {RedisFile.PASSWORD}
    assert settings.shared_domains == {"team": ("acme",), "all": None}
    assert settings.lease.times.lease_s == 30


@pytest.mark.parametrize(
    ("file", "environ", "words"),
    [
        ({"tenantNamespace": ["a"]}, {}, "tenantNamespace"),
        ({"lease": {"leaseS": 10, "renewDeadlineS": 10, "retryS": 2}}, {}, "renewDeadlineS"),
        ({"workers": 0}, {}, "workers"),
        (None, {"HANMARU_PLATFORM_SECRET_FILE": ""}, "platformSecretFile"),
        (None, {"POD_NAMESPACE": ""}, "POD_NAMESPACE"),
        (None, {"HANMARU_OPERATOR_SETTINGS_FILE": "/nowhere.yaml"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_named(
    read: Read, file: Mapping[str, object] | None, environ: dict[str, str], words: str
) -> None:
    with pytest.raises(HanmaruError, match=words) as caught:
        read(file, **environ)
    assert caught.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize(
    ("mode", "text", "words"), [(0o644, "s", "chmod 600"), (0o600, " \n", "empty"), (None, "", "cannot be read")]
)
def test_a_secret_file_is_private_and_holds_something(tmp_path: Path, mode: int | None, text: str, words: str) -> None:
    path = tmp_path / "secret"
    if mode is not None:
        path.touch(mode=mode)
        path.chmod(mode)
        path.write_text(text)
    with pytest.raises(HanmaruError, match=words):
        read_secret(path, "platform secret")


def test_a_secrets_line_break_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text("abc\n")
    assert read_secret(path, "platform secret") == "abc"
