"""Values of Redis: the chart's own server, or somebody else's (docs/redis.md)."""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import StringConstraints

from hanmaru_chart.globals import Image, NameOrEmpty, PodValues, Resources, SecretEntry, SecretKey, Text


class RedisUsers(StrictSchema):
    """Names of the ACL users, one a role. Their rights are in `files/redis/generated/acl-rules.txt`."""

    worker: Annotated[Text, StringConstraints(min_length=1)] = "worker"
    """Writes registrations."""
    gateway: Annotated[Text, StringConstraints(min_length=1)] = "gateway"
    """Reads registrations and tenants, counts quotas."""
    operator: Annotated[Text, StringConstraints(min_length=1)] = "operator"
    """Writes tenants and routes."""


class RedisPersistence(StrictSchema):
    """Whether Redis keeps what it has on a disk."""

    enabled: bool = False
    """Off: workers and the operator write everything into an empty Redis within ten seconds, so a disk would only add
    old registrations, and tie Redis to a zone. What is lost are the counts of the current minute's quotas."""
    existing_claim: NameOrEmpty = ""
    """A claim to use. Empty: one is made, and goes with the release."""
    size: Annotated[str, StringConstraints(pattern=r"^[0-9]+(Mi|Gi|Ti)$")] = "8Gi"
    """Of the claim that is made."""
    storage_class_name: Text = ""
    """Of the claim that is made. Empty: the cluster's default."""


class RedisTls(StrictSchema):
    """TLS of the chart's own Redis."""

    enabled: bool = False
    """Whether Redis speaks TLS, and nothing else."""
    existing_secret: NameOrEmpty = ""
    """A Secret of type kubernetes.io/tls with `tls.crt`, `tls.key` and `ca.crt`, made for the host
    `<release's fullname>-redis.<namespace>.svc`."""


class RedisSentinel(StrictSchema):
    """The sentinels' own login."""

    user: Text = ""
    """Their ACL user. Empty: none, or the default one."""
    password_key: SecretKey | None = None
    """Entry of `existingSecret` with their password. Absent: they ask for none."""


class ExternalRedis(StrictSchema):
    """A Redis that is there already: 6.2 or newer, with the users of `redis.users` (docs/redis.md has their rights)."""

    url: Annotated[str, StringConstraints(pattern=r"^(rediss?(\+sentinel|\+cluster)?://[^@\s]+)?$")] = ""
    """`redis://host:6379/0`, `rediss://…` with TLS, `redis+sentinel://a:26379,b:26379/mymaster`,
    `redis+cluster://a:6379,b:6379`; no user and no password in it. Empty: the chart's own Redis."""
    ca: SecretEntry = SecretEntry()
    """Certificates of the authorities behind `rediss`. Empty: the image's."""
    client_certificate_secret: NameOrEmpty = ""
    """A Secret of type kubernetes.io/tls, where Redis asks for a client certificate. Every worker is given it."""
    server_name: Text = ""
    """Name in Redis's certificates, where it is not the address connected to."""
    sentinel: RedisSentinel = RedisSentinel()
    """The sentinels' own login."""


class Redis(PodValues):
    """What gateways, workers and the operator tell each other by."""

    enabled: bool = True
    """A server of the chart's own. False: give `external.url`."""
    external: ExternalRedis = ExternalRedis()
    """Somebody else's Redis."""
    existing_secret: NameOrEmpty = ""
    """A Secret with the passwords of the users in its entries `worker`, `gateway` and `operator`. Empty: one is made
    and kept over upgrades; for an external Redis it must be given."""
    users: RedisUsers = RedisUsers()
    """Names of the users; others than these need an external Redis."""
    image: Image = Image(registry="docker.io", repository="library/redis", tag="7.2-bookworm")
    """Redis 6.2 or newer, with a shell and coreutils."""
    max_memory: Annotated[str, StringConstraints(pattern=r"^[0-9]+(kb|mb|gb)?$")] = "768mb"
    """When it is reached, writes fail: nothing in it may be evicted. Stay below the memory limit."""
    persistence: RedisPersistence = RedisPersistence()
    """Whether it keeps what it has on a disk."""
    tls: RedisTls = RedisTls()
    """TLS of the chart's own Redis."""
    resources: Resources = Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "1Gi"})
    """Of Redis."""
