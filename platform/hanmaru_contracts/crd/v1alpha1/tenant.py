"""`Tenant`: who may call which models, and how much.

Today's source is a file (`TenantsFile`), held in Redis; the CRD of the same shape comes with the operator.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_contracts.names import ModelId, TenantId

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A Kubernetes object name (RFC 1123 label)."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ApiKey(StrictSchema):
    """A key by its hash alone, so that no file or store holds the key."""

    sha256: str
    """SHA-256 of the key, 64 lower-case hexadecimal digits."""

    @model_validator(mode="after")
    def _is_hexadecimal(self) -> Self:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(
                f"sha256 has {len(self.sha256)} characters; expected 64 lower-case hexadecimal digits "
                "(`hanmaru key new` prints a key and its hash)"
            )
        return self


class Credential(StrictSchema):
    """One way to prove to be this tenant. Several at once allow rotation."""

    name: Name
    type: Annotated[str, StringConstraints(pattern="^APIKey$")] = "APIKey"
    api_key: ApiKey
    expires_at: AwareDatetime | None = None
    """When the credential stops working (RFC 3339 with a zone). Absent: never."""


class ModelRef(StrictSchema):
    """A model by its identity, not by its route."""

    namespace: Name
    name: Name

    @property
    def id(self) -> ModelId:
        """`namespace/name`."""
        return ModelId(f"{self.namespace}/{self.name}")


class Limit(StrictSchema):
    """A named set of bounds, each a token bucket that holds one minute's worth. An absent bound is unlimited."""

    name: Name = "default"
    models: tuple[ModelRef, ...] = ()
    """Which models count towards it, together. Empty: all."""
    requests_per_minute: Annotated[int, Field(gt=0)] | None = None
    input_tokens_per_minute: Annotated[int, Field(gt=0)] | None = None
    output_tokens_per_minute: Annotated[int, Field(gt=0)] | None = None


class IsolationType(StrEnum):
    """Whose cached prefixes a tenant's requests may hit."""

    OWN = "Own"
    SHARED = "Shared"


class SharedIsolation(StrictSchema):
    """A cache that several tenants share."""

    name: Name


class Isolation(StrictSchema):
    """The domain within which cached prefixes are shared."""

    type: IsolationType = IsolationType.OWN
    shared: SharedIsolation | None = None

    @model_validator(mode="after")
    def _has_its_block(self) -> Self:
        if (self.type is IsolationType.SHARED) != (self.shared is not None):
            raise ValueError(f"isolation.type is {self.type.value}: give `shared` exactly when the type is Shared")
        return self


class TenantSpec(StrictSchema):
    """What a tenant may do."""

    credentials: tuple[Credential, ...] = ()
    models: tuple[ModelRef, ...] = ()
    """Models it may call; any other looks to it as if it did not exist."""
    limits: tuple[Limit, ...] = ()
    """Every limit that matches the model applies."""
    isolation: Isolation = Isolation()
    suspended: bool = False
    """True: its keys are refused; nothing else changes."""

    def isolation_domain(self, tenant: TenantId) -> str:
        """Name of the cache domain of this tenant's requests; own and shared names cannot meet."""
        return f"shared:{self.isolation.shared.name}" if self.isolation.shared else f"own:{tenant}"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, named in (("credential", self.credentials), ("limit", self.limits)):
            names = [item.name for item in named]
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s have the same name; a {what}'s name is unique within its tenant")
        return self


class NamedTenant(TenantSpec):
    """A tenant in a file."""

    name: Name


class TenantsFile(StrictSchema):
    """All tenants of a gateway that has no operator: `tenants: [{name, credentials, models, limits}]`."""

    tenants: tuple[NamedTenant, ...] = ()

    @model_validator(mode="after")
    def _keys_and_names_are_unique(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        digests = [c.api_key.sha256 for tenant in self.tenants for c in tenant.credentials]
        for what, values in (("tenant name", names), ("API key", digests)):
            if len(set(values)) != len(values):
                raise ValueError(f"the same {what} stands twice; each belongs to one tenant")
        return self
