"""Which tenants count, which keys are theirs and which models they may call: all of them together, because names and
keys are unique across tenants. Pure; called when a Tenant, a Secret, a deployment or a namespace changed, and at
`next_change_at`.

Of two Tenants that want the same thing the older keeps it. What is wrong with one credential or one model leaves that
one out and the rest in force. A Tenant may name a shared cache only where the settings grant it; otherwise it keeps a
cache of its own, which shows it nobody's prefixes and leaves its requests served. Keys go in as bytes and come out as
hashes; no text made here quotes one. Statuses tell a model that does not exist from one that is not granted, because
whoever reads Tenants administers them; callers see the same 404 for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hanmaru_contracts.crd.schema import Name
from hanmaru_contracts.crd.v1alpha1.model_deployment import Access
from hanmaru_contracts.crd.v1alpha1.tenant import (
    ApiKey,
    Credential,
    CredentialStatus,
    Isolation,
    ModelRef,
    TenantScheduling,
    TenantSpec,
)
from hanmaru_contracts.keys import MAX_API_KEY_CHARS, MIN_API_KEY_CHARS, api_key_digest
from hanmaru_contracts.names import ModelId, TenantId
from pydantic import TypeAdapter, ValidationError

from hanmaru_operator.plan.access import NamespaceLabels, may_be_granted
from hanmaru_operator.types import ConditionType, Statement

PREFIX_CHARS = 8
"""Of a key's hash, shown to tell keys apart."""
_MOST_FINDINGS = 10
"""Told in one message; the rest are counted."""

_names: TypeAdapter[str] = TypeAdapter(Name)


# --- facts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TenantObject:
    """A Tenant as it was found."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: float
    spec: TenantSpec | None
    """None: this operator cannot read it, see `problem`."""
    problem: str = ""

    @property
    def age(self) -> tuple[float, str]:
        """The oldest sorts first; the uid decides between objects of one second."""
        return self.created_at, self.uid


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A ModelDeployment as far as tenants may be granted it."""

    route: str
    access: Access
    owns_route: bool
    """False: the route's name is another namespace's, so nothing serves it."""


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """What the chart's values say about tenants."""

    namespaces: frozenset[str]
    """The only ones in which Tenants count."""
    shared_domains: Mapping[str, frozenset[TenantId] | None]
    """Shared caches and who may use them; None: every tenant."""
    bands: frozenset[str]
    """Priority bands that exist."""


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """Everything the plan depends on."""

    tenants: Sequence[TenantObject]
    secrets: Mapping[tuple[str, str], Mapping[str, bytes]] = field(repr=False)
    """(namespace, name) -> data."""
    models: Mapping[ModelId, OfferedModel]
    namespaces: NamespaceLabels
    settings: TenantSettings
    is_store_reachable: bool
    now: float


# --- the plan ------------------------------------------------------------------------------------------------------


class TenantReason(StrEnum):
    """Reasons of a Tenant's conditions."""

    READY = "Ready"
    ALLOWED = "Allowed"
    NAME_OWNED = "NameOwned"
    COMPLETE = "Complete"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    SHARED_ISOLATION_NOT_GRANTED = "SharedIsolationNotGranted"
    NAME_TAKEN = "NameTaken"
    NAME_INVALID = "NameInvalid"
    SPEC_INVALID = "SpecInvalid"
    SUSPENDED = "Suspended"
    NO_CREDENTIAL = "NoCredential"
    NO_MODEL = "NoModel"
    STORE_UNREACHABLE = "StoreUnreachable"
    SECRET_MISSING = "SecretMissing"
    SECRET_KEY_MISSING = "SecretKeyMissing"
    KEY_EMPTY = "KeyEmpty"
    KEY_TOO_SHORT = "KeyTooShort"
    KEY_UNUSABLE = "KeyUnusable"
    KEY_SHARED = "KeyShared"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_NOT_GRANTED = "ModelNotGranted"
    BAND_UNKNOWN = "BandUnknown"


@dataclass(frozen=True, slots=True)
class TenantVerdict:
    """What one Tenant's status is to say."""

    generation: int
    statements: tuple[Statement, ...]
    credentials: tuple[CredentialStatus, ...] = ()
    """In force."""
    models: tuple[str, ...] = ()
    """Route names of the models that were granted, in order of the spec."""


@dataclass(frozen=True, slots=True)
class TenantsPlan:
    """What Redis is to hold, and what is said about it."""

    specs: Mapping[TenantId, TenantSpec] = field(repr=False)
    """Keys only by their hash, models only those that both sides agreed to."""
    verdicts: Mapping[tuple[str, str], TenantVerdict]
    """By (namespace, name)."""
    next_change_at: float | None
    """When the soonest credential expires."""


def plan_tenants(facts: TenantFacts) -> TenantsPlan:
    """Decide about all Tenants, the oldest first."""
    specs: dict[TenantId, TenantSpec] = {}
    verdicts: dict[tuple[str, str], TenantVerdict] = {}
    expiries: list[float] = []
    taken: dict[str, TenantObject] = {}
    owners: dict[str, _KeyOwner] = {}
    for tenant in sorted(facts.tenants, key=lambda tenant: tenant.age):
        place = (tenant.namespace, tenant.name)
        refusal = _refusal(tenant, taken, facts.settings)
        if refusal is not None:
            verdicts[place] = TenantVerdict(tenant.generation, refusal)
            continue
        taken[tenant.name] = tenant
        if tenant.spec is None:
            verdicts[place] = TenantVerdict(tenant.generation, _unreadable(tenant))
            continue
        honoured = _honour(tenant, tenant.spec, owners, facts)
        specs[TenantId(tenant.name)] = honoured.spec
        verdicts[place] = honoured.verdict
        expiries += [at.timestamp() for credential in honoured.spec.credentials if (at := credential.expires_at)]
    return TenantsPlan(specs, verdicts, min(expiries, default=None))


@dataclass(frozen=True, slots=True)
class _Finding:
    reason: TenantReason
    message: str


_STORE_AWAY = _Finding(
    TenantReason.STORE_UNREACHABLE, "Redis does not answer; what changed is written as soon as it does"
)


@dataclass(frozen=True, slots=True)
class _KeyOwner:
    tenant: TenantObject
    credential: str


@dataclass(frozen=True, slots=True)
class _Honoured:
    spec: TenantSpec
    verdict: TenantVerdict


def _refusal(
    tenant: TenantObject, taken: Mapping[str, TenantObject], settings: TenantSettings
) -> tuple[Statement, ...] | None:
    """Why the Tenant gets nothing at all; None: it counts."""
    if tenant.namespace not in settings.namespaces:
        counted = ", ".join(f"`{name}`" for name in sorted(settings.namespaces)) or "no namespace"
        return _nothing(
            ConditionType.NOT_ALLOWED,
            TenantReason.NAMESPACE_NOT_ALLOWED,
            f"Tenants in namespace `{tenant.namespace}` do not count, only those in {counted}",
        )
    if not _is_name(tenant.name):
        return _nothing(
            ConditionType.DEGRADED,
            TenantReason.NAME_INVALID,
            f"a tenant's name has at most 63 of a-z, 0-9 and `-`; `{tenant.name}` cannot be used",
        )
    older = taken.get(tenant.name)
    if older is not None:
        return _nothing(
            ConditionType.NAME_CONFLICT,
            TenantReason.NAME_TAKEN,
            f"an older Tenant in namespace `{older.namespace}` has the name `{tenant.name}`; use another name",
        )
    return None


def _unreadable(tenant: TenantObject) -> tuple[Statement, ...]:
    return _nothing(
        ConditionType.DEGRADED, TenantReason.SPEC_INVALID, f"the spec cannot be read by this operator: {tenant.problem}"
    )


def _honour(tenant: TenantObject, spec: TenantSpec, owners: dict[str, _KeyOwner], facts: TenantFacts) -> _Honoured:
    findings: list[_Finding] = []
    credentials = _credentials(tenant, spec, owners, facts, findings)
    models = _models(tenant, spec, facts, findings)
    isolation, isolation_finding = _isolation(tenant, spec, facts.settings)
    scheduling = _scheduling(spec, facts.settings, findings)
    if not facts.is_store_reachable:
        findings.append(_STORE_AWAY)
    written = spec.model_copy(
        update={
            "credentials": credentials,
            "models": models,
            "scheduling": scheduling,
            "isolation": isolation,
        }
    )
    statements = (
        _available(written, facts.is_store_reachable),
        _statement(ConditionType.NOT_ALLOWED, [isolation_finding] if isolation_finding else [], TenantReason.ALLOWED),
        _statement(ConditionType.NAME_CONFLICT, [], TenantReason.NAME_OWNED),
        _statement(ConditionType.DEGRADED, findings, TenantReason.COMPLETE),
    )
    routes = tuple(dict.fromkeys(facts.models[ref.id].route for ref in models))
    shown = tuple(_shown(credential) for credential in credentials)
    return _Honoured(written, TenantVerdict(tenant.generation, statements, shown, routes))


# --- credentials ---------------------------------------------------------------------------------------------------


def _credentials(
    tenant: TenantObject,
    spec: TenantSpec,
    owners: dict[str, _KeyOwner],
    facts: TenantFacts,
    findings: list[_Finding],
) -> tuple[Credential, ...]:
    """Those in force, by their hashes. A key stays its tenant's when it has expired: it never becomes another's."""
    in_force = []
    for credential in spec.credentials:
        digest = _digest(tenant, credential, facts)
        if isinstance(digest, _Finding):
            findings.append(digest)
            continue
        owner = owners.setdefault(digest, _KeyOwner(tenant, credential.name))
        if owner != _KeyOwner(tenant, credential.name):
            findings.append(_shared(tenant, credential, owner))
        elif credential.expires_at is None or facts.now < credential.expires_at.timestamp():
            in_force.append(
                Credential(
                    name=credential.name,
                    type=credential.type,
                    api_key=ApiKey(sha256=digest),
                    expires_at=credential.expires_at,
                )
            )
    return tuple(in_force)


def _digest(tenant: TenantObject, credential: Credential, facts: TenantFacts) -> str | _Finding:
    """The key's hash, or what is wrong with the key."""
    reference = credential.api_key.secret_ref
    if reference is None:
        return credential.api_key.digest
    secret = facts.secrets.get((tenant.namespace, reference.name))
    where = f"credential `{credential.name}`: "
    if secret is None:
        return _Finding(TenantReason.SECRET_MISSING, f"{where}there is no Secret `{reference.name}`")
    if reference.key not in secret:
        return _Finding(
            TenantReason.SECRET_KEY_MISSING, f"{where}Secret `{reference.name}` has no entry `{reference.key}`"
        )
    return _checked(secret[reference.key], f"{where}entry `{reference.key}` of Secret `{reference.name}` ")


def _checked(raw: bytes, where: str) -> str | _Finding:
    """The hash of a key as people store it: a line break behind it is not part of it."""
    key = raw.strip()
    if not key:
        return _Finding(TenantReason.KEY_EMPTY, f"{where}is empty")
    if len(key) < MIN_API_KEY_CHARS:
        return _Finding(
            TenantReason.KEY_TOO_SHORT,
            f"{where}has {len(key)} bytes; a key needs at least {MIN_API_KEY_CHARS} (`hanmaru key new` makes one)",
        )
    if len(key) > MAX_API_KEY_CHARS or not key.isascii() or not key.decode("ascii").isprintable() or b" " in key:
        return _Finding(
            TenantReason.KEY_UNUSABLE,
            f"{where}cannot be sent in a header; a key has at most {MAX_API_KEY_CHARS} printable ASCII characters "
            "and no space",
        )
    return api_key_digest(key.decode("ascii"))


def _shared(tenant: TenantObject, credential: Credential, owner: _KeyOwner) -> _Finding:
    if owner.tenant is tenant:
        whose = f"is also that of credential `{owner.credential}`; remove one of them"
    elif owner.tenant.namespace == tenant.namespace:
        whose = f"belongs to the older Tenant `{owner.tenant.name}`; make another"
    else:
        whose = "belongs to an older Tenant of another namespace; make another"
    return _Finding(TenantReason.KEY_SHARED, f"credential `{credential.name}`: its key {whose}")


def _shown(credential: Credential) -> CredentialStatus:
    return CredentialStatus(
        name=credential.name,
        prefix=credential.api_key.digest[:PREFIX_CHARS],
        expires_at=credential.expires_at.isoformat() if credential.expires_at else None,
    )


# --- models, band, cache -------------------------------------------------------------------------------------------


def _models(
    tenant: TenantObject, spec: TenantSpec, facts: TenantFacts, findings: list[_Finding]
) -> tuple[ModelRef, ...]:
    granted = []
    for ref in dict.fromkeys(spec.models):
        offered = facts.models.get(ref.id)
        if offered is None:
            finding = _Finding(TenantReason.MODEL_NOT_FOUND, f"model `{ref.id}`: there is no such ModelDeployment")
        elif not may_be_granted(offered.access, ref.namespace, tenant.namespace, facts.namespaces):
            finding = _Finding(
                TenantReason.MODEL_NOT_GRANTED,
                f"model `{ref.id}`: its `access` does not allow Tenants of namespace `{tenant.namespace}`",
            )
        elif not offered.owns_route:
            finding = _Finding(
                TenantReason.MODEL_NOT_GRANTED, f"model `{ref.id}`: its route name belongs to another namespace"
            )
        else:
            granted.append(ref)
            continue
        findings.append(finding)
    return tuple(granted)


def _scheduling(spec: TenantSpec, settings: TenantSettings, findings: list[_Finding]) -> TenantScheduling:
    if spec.scheduling.band in settings.bands:
        return spec.scheduling
    usual = TenantScheduling().band
    known = ", ".join(f"`{band}`" for band in sorted(settings.bands))
    findings.append(
        _Finding(
            TenantReason.BAND_UNKNOWN,
            f"there is no band `{spec.scheduling.band}`, so `{usual}` is used; bands are: {known or f'`{usual}`'}",
        )
    )
    return spec.scheduling.model_copy(update={"band": usual})


def _isolation(tenant: TenantObject, spec: TenantSpec, settings: TenantSettings) -> tuple[Isolation, _Finding | None]:
    shared = spec.isolation.shared
    if shared is None:
        return spec.isolation, None
    if shared.name in settings.shared_domains:
        members = settings.shared_domains[shared.name]
        if members is None or tenant.name in members:
            return spec.isolation, None
    return Isolation(), _Finding(
        TenantReason.SHARED_ISOLATION_NOT_GRANTED,
        f"the shared cache `{shared.name}` is not granted to this tenant; it has a cache of its own meanwhile",
    )


# --- statements ----------------------------------------------------------------------------------------------------


def _available(written: TenantSpec, is_store_reachable: bool) -> Statement:
    if written.suspended:
        return _unavailable(TenantReason.SUSPENDED, "spec.suspended is true: its keys are refused")
    if not written.credentials:
        return _unavailable(TenantReason.NO_CREDENTIAL, "no credential is in force")
    if not written.models:
        return _unavailable(TenantReason.NO_MODEL, "no model is granted to it")
    if not is_store_reachable:
        return Statement(ConditionType.AVAILABLE, None, _STORE_AWAY.reason, _STORE_AWAY.message)
    return Statement(ConditionType.AVAILABLE, True, TenantReason.READY)


def _nothing(type_: ConditionType, reason: TenantReason, message: str) -> tuple[Statement, ...]:
    """The statements of a Tenant that gets nothing: the one that says why, and the others at rest."""
    finding = _Finding(reason, message)

    def at_rest(other: ConditionType, resting: TenantReason) -> Statement:
        return _statement(other, [finding] if other is type_ else [], resting)

    return (
        _unavailable(reason, message),
        at_rest(ConditionType.NOT_ALLOWED, TenantReason.ALLOWED),
        at_rest(ConditionType.NAME_CONFLICT, TenantReason.NAME_OWNED),
        at_rest(ConditionType.DEGRADED, TenantReason.COMPLETE),
    )


def _unavailable(reason: TenantReason, message: str) -> Statement:
    return Statement(ConditionType.AVAILABLE, False, reason, message)


def _statement(type_: ConditionType, findings: Sequence[_Finding], resting: TenantReason) -> Statement:
    """True with the first finding's reason and every finding's words, or false."""
    if not findings:
        return Statement(type_, False, resting)
    told = [finding.message for finding in findings[:_MOST_FINDINGS]]
    more = f"; and {len(findings) - _MOST_FINDINGS} more" if len(findings) > _MOST_FINDINGS else ""
    return Statement(type_, True, findings[0].reason, "; ".join(told) + more)


def _is_name(name: str) -> bool:
    try:
        _names.validate_python(name)
    except ValidationError:
        return False
    return True
