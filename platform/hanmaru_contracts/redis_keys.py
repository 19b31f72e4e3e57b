"""Every Redis key and channel, and which role may touch it.

Keys start with `hm:`. What one script or transaction touches together shares a hash tag, so that a Redis Cluster works.
"""

from __future__ import annotations

from hanmaru_contracts.names import ModelId, ReplicaId, RequestId, TenantId

MODELS = "hm:models"
"""Set of every model id that ever had a worker; a member without live workers means nothing."""


def workers(model: ModelId) -> str:
    """Sorted set: replica id -> last renewal (Redis server seconds). Members whose lease key is gone are dead."""
    return f"hm:{{{model}}}:workers"


def worker_lease(model: ModelId, replica: ReplicaId) -> str:
    """A signed `WorkerRecord`; expires with the lease."""
    return f"hm:{{{model}}}:worker:{replica}"


def artifact(model: ModelId, digest: str) -> str:
    """Packed `ModelArtifact` by its SHA-256."""
    return f"hm:{{{model}}}:artifact:{digest}"


TENANTS = "hm:{tenants}:specs"
"""Hash: tenant id -> JSON `TenantSpec`."""
TENANTS_VERSION = "hm:{tenants}:version"
"""String: digest of all of `TENANTS`; gateways reload when it changes, writers restore when it is gone."""


ROUTES = "hm:{routes}:models"
"""Hash: route name -> JSON of its models and their weights. Route names that are missing belong to nobody."""
ROUTES_VERSION = "hm:{routes}:version"
"""String: digest of all of `ROUTES`. Never written where there is no operator: then workers' routes are believed."""


def quota(tenant: TenantId, limit: str) -> str:
    """Hash with one token bucket a counted unit, of one named limit of one tenant."""
    return f"hm:{{t:{tenant}}}:quota:{limit}"


def running(tenant: TenantId, limit: str) -> str:
    """Sorted set: reservation key of a running request -> when its place lapses unless renewed (Redis's ms)."""
    return f"hm:{{t:{tenant}}}:running:{limit}"


def reservation(tenant: TenantId, request: RequestId) -> str:
    """What one admitted request still holds; whoever deletes it settles it, so it is settled once."""
    return f"hm:{{t:{tenant}}}:reservation:{request}"


TIER_SHARDS = 8
"""Parts into which a model's shared cache is cut, so that the nodes of a Redis Cluster share it."""


def tier_page(model: ModelId, shard: int, tail: str) -> str:
    """String: one sealed page of the shared cache; expires."""
    return f"hm:{{tier:{model}:{shard}}}:page:{tail}"


def tier_index(model: ModelId, shard: int) -> str:
    """Sorted set: `size:key` of a shard's pages -> when each lapses (Redis's ms)."""
    return f"hm:{{tier:{model}:{shard}}}:index"


def tier_bytes(model: ModelId, shard: int) -> str:
    """String: bytes that a shard's pages take."""
    return f"hm:{{tier:{model}:{shard}}}:bytes"


# Redis ACL rules by role, as arguments of ACL SETUSER. Redis 6.2: patterns without read/write split.
# No `client|setinfo`: Redis 7.0 does not know it and refuses an ACL file that names it; clients do without.
# All of `info`: `info|memory` is no bound on Redis 7, which answers `INFO memory everything` and may drop such rules.
# In a cluster `cluster|slots` tells where keys are, and `asking` follows a key that moves.
_CONNECTION = (
    "+ping", "+hello", "+auth", "+client|setname", "+client|id", "+select", "+time", "+cluster|slots", "+asking",
)  # fmt: skip
ACL_RULES: dict[str, tuple[str, ...]] = {
    "worker": (
        "~hm:models",
        "~hm:{*/*}:worker*",
        "~hm:{*/*}:artifact:*",
        *_CONNECTION,
        "+multi", "+exec", "+discard",
        "+set", "+get", "+del", "+exists", "+pexpire", "+expire", "+sadd", "+zadd", "+zrem", "+zremrangebyscore",
    ),
    "gateway": (
        "~hm:models",
        "~hm:{*/*}:worker*",
        "~hm:{*/*}:artifact:*",
        "~hm:{tenants}:*",
        "~hm:{routes}:*",
        "~hm:{t:*}:*",
        *_CONNECTION,
        "+multi", "+exec", "+discard", "+eval", "+evalsha", "+script|load",
        "+get", "+mget", "+set", "+del", "+exists", "+expire", "+pexpire", "+smembers", "+zrange", "+zrangebyscore",
        "+zadd", "+zcard", "+zrem", "+zremrangebyscore",
        "+hgetall", "+hget", "+hmget", "+hset", "+hdel", "+hincrby", "+hincrbyfloat",
    ),
    "operator": (
        "~hm:models",
        "~hm:{*/*}:worker*",
        "~hm:{tenants}:*",
        "~hm:{routes}:*",
        *_CONNECTION,
        "+watch", "+unwatch", "+multi", "+exec", "+discard",
        "+get", "+mget", "+set", "+del", "+exists", "+smembers", "+srem", "+zrange", "+zrem",
        "+hgetall", "+hset", "+hdel",
    ),
    "tier": (
        "~hm:{tier:*}:*",
        *_CONNECTION,
        "+eval", "+evalsha", "+strlen", "+getrange", "+get", "+set", "+unlink", "+pexpire",
        "+zadd", "+zrem", "+zcard", "+zscore", "+zrange", "+zrangebyscore", "+info",
    ),
}  # fmt: skip
"""One Redis user a role; none may FLUSHALL or CONFIG, a worker never sees quotas, tenants or routes, the operator
never sees quotas, and the shared cache (`tier`, the engines') sees nothing but its own pages. Whoever may write can
fill Redis, and whoever may `EVAL` can keep it busy: `docs/trust.md`."""
