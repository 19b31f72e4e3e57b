"""`Tenant`: who may call which models, and how much.

One shape, three places: objects on a cluster, a file on a laptop (`TenantsFile`), and what gateways read from Redis,
where every key is a hash and every model one that the tenant was granted.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints, model_validator

from hanmaru_contracts.crd.schema import (
    Conditions,
    Name,
    Natural,
    Positive,
    Rule,
    Schema,
    Text,
    is_unique,
    list_map,
    rules,
)
from hanmaru_contracts.crd.v1alpha1.model_deployment import SecretKeyRef
from hanmaru_contracts.names import ModelId, TenantId

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
# What the API server calls a date-time includes years and zones that Python refuses.
_TIME = r"^2\d{3}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$"
_MODELS = list_map("namespace", "name")


class ApiKey(Schema):
    """A key by its hash, or by the Secret that holds it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("has(self.sha256) != has(self.secretRef)", "give exactly one of `sha256` and `secretRef`")
        )
    )

    sha256: Annotated[str, Field(json_schema_extra={"pattern": _SHA256.pattern, "maxLength": 64})] | None = None
    """SHA-256 of the key, 64 lower-case hexadecimal digits (`hanmaru key new` prints a key and its hash): no Secret is
    needed."""
    secret_ref: SecretKeyRef | None = None
    """A Secret of the Tenant's namespace that holds the key."""

    @property
    def digest(self) -> str:
        """The hash, of a key that is given by its hash."""
        assert self.sha256 is not None
        return self.sha256

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.sha256 is None) == (self.secret_ref is None):
            raise ValueError("give exactly one of sha256 and secretRef")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(
                f"sha256 has {len(self.sha256)} characters; expected 64 lower-case hexadecimal digits "
                "(`hanmaru key new` prints a key and its hash)"
            )
        return self


class CredentialType(StrEnum):
    """Ways to prove to be a tenant."""

    API_KEY = "APIKey"


class Credential(Schema):
    """One way to prove to be this tenant. Several at once allow rotation."""

    # No rule ties `type` to its block while there is one type, whose block is required.
    name: Name
    """Its name, unique within the tenant."""
    type: CredentialType = CredentialType.API_KEY
    """`APIKey`."""
    api_key: ApiKey
    """For type `APIKey`."""
    expires_at: Annotated[AwareDatetime, Field(json_schema_extra={"pattern": _TIME, "maxLength": 40})] | None = None
    """When the credential stops working (RFC 3339 with a zone). Absent: never."""


class ModelRef(Schema):
    """A model by its identity, not by its route."""

    namespace: Name
    """Namespace of the ModelDeployment."""
    name: Name
    """Name of the ModelDeployment."""

    @property
    def id(self) -> ModelId:
        """`namespace/name`."""
        return ModelId(f"{self.namespace}/{self.name}")


_PerMinute = Annotated[int, Field(gt=0, le=2**53)]


class Limit(Schema):
    """A named set of bounds. Those of a minute are token buckets that hold one minute's worth. An absent bound is
    unlimited.
    """

    name: Name = "default"
    """Its name, unique within the tenant."""
    models: Annotated[tuple[ModelRef, ...], Field(max_length=64, json_schema_extra=_MODELS)] = ()
    """Which models count towards it, together. Empty: all."""
    requests_per_minute: _PerMinute | None = None
    """Requests admitted a minute."""
    input_tokens_per_minute: _PerMinute | None = None
    """Prompt tokens a minute."""
    output_tokens_per_minute: _PerMinute | None = None
    """Generated tokens a minute."""
    concurrency: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """Requests that run at the same time."""
    context_tokens: Positive | None = None
    """Prompt and output of one request together."""


class TenantScheduling(Schema):
    """The tenant's place where requests have to wait for each other. Gateways are told of it and do not use it yet:
    requests are served in the order in which they come.
    """

    band: Name = "standard"
    """Priority band, one of those that the operator is set to know."""
    weight: Annotated[int, Field(gt=0, le=10_000)] = 100
    """Share among the tenants of its band."""


class IsolationType(StrEnum):
    """Whose cached prefixes a tenant's requests may hit."""

    OWN = "Own"
    SHARED = "Shared"


class SharedIsolation(Schema):
    """A cache that several tenants share."""

    name: Name
    """The shared domain's name."""


class Isolation(Schema):
    """The domain within which cached prefixes are shared."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("has(self.shared) == (self.type == 'Shared')", "give `shared` exactly when the type is Shared")
        )
    )

    type: IsolationType = IsolationType.OWN
    """`Own`, or `Shared` with its block."""
    shared: SharedIsolation | None = None
    """For type `Shared`."""

    @model_validator(mode="after")
    def _has_its_block(self) -> Self:
        if (self.type is IsolationType.SHARED) != (self.shared is not None):
            raise ValueError(f"isolation.type is {self.type.value}: give `shared` exactly when the type is Shared")
        return self


class TenantSpec(Schema):
    """What a tenant may do."""

    credentials: Annotated[tuple[Credential, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """Keys; several at once allow rotation."""
    models: Annotated[tuple[ModelRef, ...], Field(max_length=256, json_schema_extra=_MODELS)] = ()
    """Models it may call; any other looks to it as if it did not exist."""
    limits: Annotated[tuple[Limit, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """Every limit that matches the model applies."""
    scheduling: TenantScheduling = TenantScheduling()
    """Its place where requests have to wait for each other; without effect until gateways keep a queue."""
    isolation: Isolation = Isolation()
    """The domain within which cached prefixes are shared."""
    suspended: bool = False
    """True: its keys are refused; nothing else changes."""

    def isolation_domain(self, tenant: TenantId) -> str:
        """Name of the cache domain of this tenant's requests; own and shared names cannot meet."""
        return f"shared:{self.isolation.shared.name}" if self.isolation.shared else f"own:{tenant}"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, named in (("credential", self.credentials), ("limit", self.limits)):
            if not is_unique([item.name for item in named]):
                raise ValueError(f"two {what}s have the same name; a {what}'s name is unique within its tenant")
        return self


class CredentialStatus(Schema):
    """A credential without its secret."""

    name: Name
    """The credential."""
    prefix: Annotated[str, StringConstraints(max_length=12)] = ""
    """First digits of the key's hash, to tell keys apart; nothing of the key itself."""
    expires_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When it stops working. Absent: never."""


class TenantStatus(Schema):
    """What the operator found."""

    observed_generation: Natural = 0
    """The generation of the spec it speaks of."""
    credentials: Annotated[tuple[CredentialStatus, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """Credentials in force."""
    models: Annotated[tuple[Text, ...], Field(max_length=256)] = ()
    """Route names it may call, of the models that were granted."""
    conditions: Conditions = ()
    """`Available`, `NotAllowed`, `Degraded`."""


class NamedTenant(TenantSpec):
    """A tenant in a file."""

    name: Name


class TenantsFile(Schema):
    """All tenants of a gateway that has no operator: `tenants: [{name, credentials, models, limits}]`."""

    tenants: tuple[NamedTenant, ...] = ()

    @model_validator(mode="after")
    def _keys_and_names_are_unique(self) -> Self:
        keys = [c.api_key for tenant in self.tenants for c in tenant.credentials]
        if any(key.sha256 is None for key in keys):
            raise ValueError("apiKey.secretRef needs Kubernetes; in a file give apiKey.sha256")
        for what, values in (
            ("tenant name", [tenant.name for tenant in self.tenants]),
            ("API key", [key.digest for key in keys]),
        ):
            if not is_unique(values):
                raise ValueError(f"the same {what} stands twice; each belongs to one tenant")
        return self
