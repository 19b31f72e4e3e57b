"""A command's slot is that of its key, by the key's tag; a node is known as long as it serves or is used."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import ModelId, ReplicaId, RequestId, TenantId
from hanmaru_redis import Redis
from hanmaru_redis.address import Host
from hanmaru_redis.slots import Slots, slot_of
from hanmaru_testing.redis_topologies import HOST, cluster, single

MODEL, TENANT = ModelId("team/exaone"), TenantId("acme")
LEASE = redis_keys.worker_lease(MODEL, ReplicaId("w"))
QUOTA = redis_keys.quota(TENANT, "default")


@pytest.mark.parametrize("command", [("TIME",), ("PING",), ("SCRIPT LOAD", "return 1"), ("EVAL", "return 1", 0)])
def test_a_command_without_a_key_goes_anywhere(command: tuple[object, ...]) -> None:
    assert slot_of(command) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("GET", LEASE), ("ZRANGE", redis_keys.workers(MODEL), 0, -1)),
        (("GET", LEASE), ("GET", redis_keys.artifact(MODEL, "0" * 64).encode())),
        (("HGETALL", redis_keys.TENANTS), ("WATCH", redis_keys.TENANTS_VERSION)),
        (("HGETALL", redis_keys.ROUTES), ("SET", redis_keys.ROUTES_VERSION, "1")),
        (("EVALSHA", "0" * 40, 2, redis_keys.reservation(TENANT, RequestId("req")), QUOTA), ("HGETALL", QUOTA)),
        (("EVAL", "return 1", "1", QUOTA, "7"), ("HGETALL", QUOTA)),
        (("SET", "foo", "x"), ("SET", "other{foo}", "y")),
    ],
)
def test_what_belongs_together_shares_a_slot(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert slot_of(one) == slot_of(other)


def test_slots_are_those_of_redis() -> None:
    """CLUSTER KEYSLOT of a real server said so."""
    assert [slot_of(("GET", key)) for key in ("foo", "hm:models", "hm:{tenants}:specs")] == [12182, 11952, 10927]


@pytest.mark.timeout(60)
async def test_a_node_that_left_is_forgotten_once_nobody_uses_it(tmp_path: Path) -> None:
    with cluster(tmp_path) as installation, single(tmp_path) as outside:
        password = installation.servers[0].password
        slots = Slots(
            [Host(HOST, installation.servers[0].port)],
            lambda host: Redis(host=host.name, port=host.port, password=password),
            1.0,
        )
        left = slots.node(Host(HOST, outside.servers[0].port))
        used = await left.redis.connection_pool.get_connection()
        for is_used in (True, False):
            if not is_used:
                await left.redis.connection_pool.release(used)
            slots.doubt(left)
            await asyncio.sleep(0.2)  # the map is not read again sooner
            stays = await slots.serving(0)
            assert (slots.node(left.host) is left) is is_used
            assert slots.node(stays.host) is stays
            assert used.is_connected is is_used
        await slots.close()
