"""Values of the shared caches: whether deployments may have one, and on which Redis (docs/shared-cache.md)."""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import StringConstraints

from hanmaru_chart.globals import NameOrEmpty, SecretEntry, Text


class SharedCache(StrictSchema):
    """A tier of the prefix cache on Redis, for deployments that ask for one (`serving.kvCache.tier`)."""

    enabled: bool = False
    """Whether deployments may have one. Off: those that ask go without."""
    url: Annotated[str, StringConstraints(pattern=r"^(rediss?(\+sentinel|\+cluster)?://[^@\s]+)?$")] = ""
    """A Redis of its own, which is better: pages are large, and whoever fills this one stops nothing else. As
    `redis.external.url`. Empty: the Redis of registrations and quotas; raise `redis.maxMemory` then, of which a fifth
    is left free, and leave `redis.persistence` off."""
    existing_secret: NameOrEmpty = ""
    """A Secret with the user's password in its entry `tier`. Needed with `url`; else it is `redis.existingSecret`, or
    made."""
    user: Annotated[Text, StringConstraints(min_length=1)] = "tier"
    """The ACL user; another name needs a Redis that is not the chart's own."""
    ca: SecretEntry = SecretEntry()
    """Certificates of the authorities behind a `url` with TLS. Empty: the image's."""
    server_name: Text = ""
    """Name in the certificates of `url`'s Redis, where it is not the address connected to."""
