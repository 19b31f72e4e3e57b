from __future__ import annotations

from pathlib import Path

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_redis.address import read_address
from hanmaru_redis.settings import Credentials
from hanmaru_worker.settings import GroupRank, read_settings

SPEC = """{"model": {"namespace": "team", "name": "exaone"}, "route": "exaone", "checkpoint": "/m",
           "contextTokens": 4096, "httpPort": 30002, "supervisorPort": 30102}"""
KEY = "ab" * 32


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name, text in (("spec.json", SPEC), ("replica.key", KEY + "\n"), ("redis.password", "hunter2\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return {
        "HANMARU_ENGINE_SPEC": str(tmp_path / "spec.json"),
        "HANMARU_REPLICA_ID": "worker-0",
        "HANMARU_REPLICA_KEY_FILE": str(tmp_path / "replica.key"),
        "HANMARU_HOME": str(tmp_path / "home"),
    }


def test_defaults_are_those_of_a_laptop(environ: dict[str, str], tmp_path: Path) -> None:
    settings = read_settings(environ)
    assert settings.replica_key == bytes.fromhex(KEY)
    assert settings.redis.address == read_address("redis://127.0.0.1:6379/0")
    assert settings.redis.credentials == Credentials()
    assert settings.rank == GroupRank()
    assert settings.advertise_host == "127.0.0.1"
    assert settings.log_dir == tmp_path / "home" / "logs"
    assert (settings.engine_port, settings.supervisor_port) == (30002, 30102)


def test_everything_can_be_told(environ: dict[str, str], tmp_path: Path) -> None:
    settings = read_settings(
        environ
        | {
            "HANMARU_REDIS_URL": "redis://redis:6379/0",
            "HANMARU_REDIS_USER": "worker",
            "HANMARU_REDIS_PASSWORD_FILE": str(tmp_path / "redis.password"),
            "HANMARU_GROUP_RANK": "1",
            "HANMARU_GROUP_SIZE": "2",
            "HANMARU_GROUP_ADDRESS": "rank-0.group:20000",
            "HANMARU_ADVERTISE_HOST": "10.0.0.7",
            "HANMARU_LOG_DIR": "/logs",
        }
    )
    assert settings.redis.credentials == Credentials("worker", "hunter2")
    assert settings.rank == GroupRank(1, 2, "rank-0.group:20000")
    assert settings.rank.leader_host == "rank-0.group"
    assert settings.engine_address == "10.0.0.7:30002"
    assert settings.supervisor_port == 30102


@pytest.fixture
def with_tier(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "spec.json").write_text(SPEC.replace('"route"', '"sharedCache": {}, "route"'))
    return environ | {
        "HANMARU_TIER_KEY_FILE": str(tmp_path / "replica.key"),
        "HANMARU_TIER_REDIS_URL": "redis://tier:6379",
        "HANMARU_TIER_REDIS_PASSWORD_FILE": str(tmp_path / "redis.password"),
    }


@pytest.mark.parametrize("missing", ["HANMARU_TIER_KEY_FILE", "HANMARU_TIER_REDIS_URL"])
def test_a_shared_cache_without_a_way_to_it_is_told_at_the_start(with_tier: dict[str, str], missing: str) -> None:
    assert read_settings(with_tier).spec.shared_cache is not None
    with pytest.raises(HanmaruError, match=f"{missing} is not set"):
        read_settings({name: value for name, value in with_tier.items() if name != missing})


def test_ranks_that_share_a_machine_have_ports_of_their_own(environ: dict[str, str]) -> None:
    """Elsewhere each has an address of its own, and one probe fits all pods of a StatefulSet."""
    group = {"HANMARU_GROUP_RANK": "1", "HANMARU_GROUP_SIZE": "2", "HANMARU_GROUP_ADDRESS": "a:1"}
    group |= {"HANMARU_GROUP_PEERS": "a,b"}
    beside = read_settings(environ | group)
    assert (beside.engine_address, beside.supervisor_port) == ("127.0.0.1:30003", 30103)
    assert beside.peers == (("a", 30102), ("b", 30103))
    apart = read_settings(environ | group | {"HANMARU_ADVERTISE_HOST": "fd00::7"})
    assert (apart.engine_address, apart.supervisor_port) == ("[fd00::7]:30002", 30102)
    assert apart.peers == (("a", 30102), ("b", 30102))


def test_settings_show_no_secret(environ: dict[str, str], tmp_path: Path) -> None:
    shown = repr(read_settings(environ | {"HANMARU_REDIS_PASSWORD_FILE": str(tmp_path / "redis.password")}))
    assert "hunter2" not in shown
    assert str(bytes.fromhex(KEY)) not in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HANMARU_ENGINE_SPEC": ""}, "HANMARU_ENGINE_SPEC is not set"),
        ({"HANMARU_REPLICA_ID": ""}, "HANMARU_REPLICA_ID is not set"),
        ({"HANMARU_REPLICA_KEY_FILE": ""}, "HANMARU_REPLICA_KEY_FILE is not set"),
        ({"HANMARU_ENGINE_SPEC": "/nowhere.json"}, "cannot read the engine spec /nowhere.json"),
        ({"HANMARU_REPLICA_KEY_FILE": "/nowhere.key"}, "cannot read the secret file /nowhere.key"),
        ({"HANMARU_GROUP_RANK": "2", "HANMARU_GROUP_SIZE": "2", "HANMARU_GROUP_ADDRESS": "h:1"}, "is not a rank"),
        ({"HANMARU_GROUP_RANK": "-1"}, "not a whole number"),
        ({"HANMARU_GROUP_SIZE": "0"}, "is not a rank"),
        ({"HANMARU_GROUP_SIZE": "2"}, "needs HANMARU_GROUP_ADDRESS"),
        ({"HANMARU_GROUP_SIZE": "2", "HANMARU_GROUP_ADDRESS": "host"}, "needs HANMARU_GROUP_ADDRESS"),
        (
            {"HANMARU_GROUP_SIZE": "2", "HANMARU_GROUP_ADDRESS": "h:1", "HANMARU_GROUP_PEERS": "h"},
            "HANMARU_GROUP_PEERS names 1 hosts of a group of 2",
        ),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], changes: dict[str, str], message: str) -> None:
    with pytest.raises(HanmaruError, match=message) as wrong:
        read_settings(environ | changes)
    assert wrong.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize(
    ("spec", "message"),
    [("{", "file"), (SPEC.replace("4096", "0"), "contextTokens"), (SPEC.replace('"route"', '"rout"'), "rout")],
)
def test_a_broken_spec_is_refused_with_the_field(environ: dict[str, str], spec: str, message: str) -> None:
    Path(environ["HANMARU_ENGINE_SPEC"]).write_text(spec)
    with pytest.raises(HanmaruError, match=message):
        read_settings(environ)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
def test_a_key_that_others_can_use_is_refused(environ: dict[str, str], mode: int) -> None:
    Path(environ["HANMARU_REPLICA_KEY_FILE"]).chmod(mode)
    with pytest.raises(HanmaruError, match="chmod 600"):
        read_settings(environ)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_a_key_of_the_owner_or_its_group_is_taken(environ: dict[str, str], mode: int) -> None:
    Path(environ["HANMARU_REPLICA_KEY_FILE"]).chmod(mode)
    assert read_settings(environ).replica_key


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "ab" * 33])
def test_a_key_of_another_form_is_refused_without_being_shown(environ: dict[str, str], text: str) -> None:
    Path(environ["HANMARU_REPLICA_KEY_FILE"]).write_text(text)
    with pytest.raises(HanmaruError, match="64 hexadecimal digits") as wrong:
        read_settings(environ)
    assert not text or text not in wrong.value.message
