"""`RenderSettings`: what an installation of the operator decides about the pods it makes.

`main` builds it once from the operator's own settings. What a pool or a deployment decides is in their specs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hanmaru_contracts.wire.engine_spec import EngineType


class RedisFile(StrEnum):
    """What a worker may need to reach Redis with; a key of its replica's Secret each."""

    PASSWORD = "redis-password"
    CA = "redis-ca.crt"
    CERT = "redis-client.crt"
    KEY = "redis-client.key"
    SENTINEL_PASSWORD = "redis-sentinel-password"


@dataclass(frozen=True, slots=True)
class TierRedis:
    """Where shared caches are, as `RenderSettings` says it of the registrations' Redis."""

    url: str
    user: str = ""
    server_name: str = ""
    sentinel_user: str = ""
    files: frozenset[RedisFile] = frozenset()


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """One for a process. Whatever of it stands in a pod template is kept in the revision's snapshot."""

    worker_images: Mapping[EngineType, str]
    """The worker's image where a pool names none; the revision keeps the one it began with."""
    operator_image: str
    """The operator's own image: model-facts pods run it."""
    redis_url: str
    """Where workers register, without credentials: `redis://host:port/0`, or any other form of docs/redis.md."""
    redis_user: str = ""
    """The workers' Redis user. Empty: Redis asks for none."""
    redis_server_name: str = ""
    """Name in Redis's certificates. Empty: the address."""
    redis_sentinel_user: str = ""
    """The sentinels' own user. Empty: they ask for none."""
    redis_files: frozenset[RedisFile] = frozenset()
    """What is given with each replica's secrets."""
    tier: TierRedis | None = None
    """Redis of the shared caches (docs/shared-cache.md). Absent: no deployment has one, whatever it asks for."""
    trace_endpoint: str = ""
    """OTLP gRPC endpoint of the engines' spans, `http://host:4317`. Empty: no tracing."""
    gateway_namespace: str = "hanmaru"
    """Where the gateways' pods are: they may reach the engines."""
    gateway_pod_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the gateways' pods. Empty: every pod of that namespace."""
    metrics_namespace_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the namespaces that may fetch the workers' metrics. Empty: none."""
    image_pull_policy: str = ""
    """Of the pods' containers. Empty: the cluster's default."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets that a deployment's namespace holds for the images above."""
