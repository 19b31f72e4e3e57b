"""Gateway and operator can do in a real Redis exactly what they do; tests/worker shows the worker's role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import ModelId, ReplicaId, RequestId, TenantId
from hanmaru_testing.redis_server import RedisServer

MODEL, TENANT = ModelId("default/k"), TenantId("a")
WORKERS = redis_keys.workers(MODEL)
LEASE = redis_keys.worker_lease(MODEL, ReplicaId("k-0"))
ARTIFACT = redis_keys.artifact(MODEL, "0" * 64)
QUOTA = redis_keys.quota(TENANT, "default")
PAGE = redis_keys.tier_page(MODEL, 0, "x")
RESERVATION = redis_keys.reservation(TENANT, RequestId("req-1"))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client("gateway") as client:
        yield client


@pytest.fixture(scope="module")
def operator(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client("operator") as client:
        yield client


@pytest.fixture(scope="module")
def tier(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client("tier") as client:
        yield client


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("TIME",),
        ("SMEMBERS", redis_keys.MODELS),
        ("ZRANGE", WORKERS, "0", "-1"),
        ("GET", LEASE),
        ("MGET", LEASE, LEASE),
        ("GET", ARTIFACT),
        ("GET", redis_keys.TENANTS_VERSION),
        ("EXISTS", redis_keys.TENANTS, redis_keys.TENANTS_VERSION),
        ("HGETALL", redis_keys.TENANTS),
        ("DEL", redis_keys.TENANTS),
        ("HSET", redis_keys.TENANTS, "a", "{}"),
        ("SET", redis_keys.TENANTS_VERSION, "1"),
        ("GET", redis_keys.ROUTES_VERSION),
        ("HGETALL", redis_keys.ROUTES),
        ("MULTI",),
        ("HSET", QUOTA, "input", "1"),
        ("EXEC",),
        ("EVAL", "redis.call('TIME'); return redis.call('HINCRBY', KEYS[1], 'input', 1)", "1", QUOTA),
        ("EVAL", "return redis.call('SET', KEYS[1], '', 'PX', 1)", "1", RESERVATION),
        ("EVAL", "redis.call('HSET', KEYS[1], 'at', 1); return redis.call('PEXPIRE', KEYS[1], 9)", "1", QUOTA),
    ],
    ids=" ".join,
)
def test_a_gateway_may_do_its_work(gateway: redis.Redis, command: tuple[str, ...]) -> None:
    gateway.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("WATCH", redis_keys.TENANTS, redis_keys.TENANTS_VERSION),
        ("GET", redis_keys.TENANTS_VERSION),
        ("HGETALL", redis_keys.TENANTS),
        ("MULTI",),
        ("HDEL", redis_keys.TENANTS, "a"),
        ("HSET", redis_keys.TENANTS, "b", "{}"),
        ("SET", redis_keys.TENANTS_VERSION, "1"),
        ("EXEC",),
        ("WATCH", redis_keys.ROUTES, redis_keys.ROUTES_VERSION),
        ("HGETALL", redis_keys.ROUTES),
        ("HSET", redis_keys.ROUTES, "tiny", "{}"),
        ("HDEL", redis_keys.ROUTES, "tiny"),
        ("SET", redis_keys.ROUTES_VERSION, "1"),
        ("UNWATCH",),
        ("EXISTS", redis_keys.ROUTES),
        ("SMEMBERS", redis_keys.MODELS),
        ("ZRANGE", WORKERS, "0", "-1"),
        ("MGET", LEASE),
        ("ZREM", WORKERS, "k-0"),
        ("DEL", LEASE),
        ("SREM", redis_keys.MODELS, MODEL),
    ],
    ids=" ".join,
)
def test_the_operator_may_do_its_work(operator: redis.Redis, command: tuple[str, ...]) -> None:
    operator.execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("GET", ARTIFACT),
        ("HGETALL", QUOTA),
        ("DEL", QUOTA),
        ("GET", RESERVATION),
        ("SADD", redis_keys.MODELS, MODEL),
        ("ZADD", WORKERS, "1", "k-0"),
        ("EVAL", "return 1", "0"),
    ],
    ids=" ".join,
)
def test_the_operator_sees_no_quota_and_registers_nobody(operator: redis.Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.ResponseError, match=r"(?i)permission"):
        operator.execute_command(*command)


_NOBODYS = pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "dir", "/tmp"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("DBSIZE",),
        ("RANDOMKEY",),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "x", "on", "nopass", "+@all"),
        ("DEBUG", "SLEEP", "0"),
        ("SHUTDOWN", "NOSAVE"),
        ("SAVE",),
        ("MONITOR",),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("SCRIPT", "FLUSH"),
        ("MODULE", "LIST"),
        ("SUBSCRIBE", "x"),
        ("PUBLISH", "x", "y"),
        ("GET", "other"),
        ("SET", "hm:other", "x"),
        ("SET", "ray:job", "x"),
        ("GET", "hm:{tenants}"),
        ("RENAME", QUOTA, "hm:other"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("EVAL", "return redis.call('CONFIG', 'GET', '*')", "0"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "other"),
    ],
    ids=" ".join,
)


@_NOBODYS
def test_a_gateway_may_do_nothing_else(gateway: redis.Redis, command: tuple[str, ...]) -> None:
    _assert_refused(gateway, command)


@_NOBODYS
def test_the_operator_may_do_nothing_else(operator: redis.Redis, command: tuple[str, ...]) -> None:
    _assert_refused(operator, command)


@_NOBODYS
def test_the_shared_caches_user_may_do_nothing_else(tier: redis.Redis, command: tuple[str, ...]) -> None:
    _assert_refused(tier, command)


@pytest.mark.parametrize("key", [LEASE, ARTIFACT, QUOTA, RESERVATION, redis_keys.TENANTS, redis_keys.ROUTES])
def test_the_shared_caches_user_touches_nothing_but_pages(tier: redis.Redis, key: str) -> None:
    script = "return redis.call('SET', KEYS[1], 'x')"
    tier.execute_command("EVAL", script, "1", PAGE)
    for command in (("GET", key), ("SET", key, "x"), ("UNLINK", key), ("EVAL", script, "1", key)):
        _assert_refused(tier, command)


@pytest.mark.parametrize("role", redis_keys.ACL_RULES)
def test_only_shared_caches_see_how_full_redis_is(server: RedisServer, role: str) -> None:
    with server.client(role) as client:
        if role == "tier":
            assert b"maxmemory:" in client.execute_command("EVAL", "return redis.call('INFO', 'memory')", "0")
        else:
            _assert_refused(client, ("INFO",))
            _assert_refused(client, ("INFO", "memory"))


def _assert_refused(client: redis.Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*command)
    said = str(caught.value).lower()
    refusals = ("permission", "the user executing the script can't", "not allowed from script", "command not allowed")
    assert any(refusal in said for refusal in refusals), said


def test_no_role_has_all_commands_or_all_keys() -> None:
    for rules in redis_keys.ACL_RULES.values():
        assert not {"~*", "allkeys", "+@all", "allcommands", "nopass"} & set(rules)


def test_what_one_exchange_touches_together_shares_a_slot() -> None:
    def tag(key: str) -> str:
        return key[key.index("{") : key.index("}")]

    assert tag(redis_keys.TENANTS) == tag(redis_keys.TENANTS_VERSION)
    assert tag(redis_keys.ROUTES) == tag(redis_keys.ROUTES_VERSION)
    assert tag(QUOTA) == tag(RESERVATION)
    assert tag(WORKERS) == tag(LEASE) == tag(ARTIFACT)


def test_the_rules_to_copy_are_these() -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    for role, rules in redis_keys.ACL_RULES.items():
        assert f"\nuser {role} on >PASSWORD resetchannels {' '.join(rules)}\n" in page
