"""Names and keys have one owner, models need both sides, and no key leaves the plan but by its hash."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import Access
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.keys import api_key_digest
from hanmaru_contracts.names import ModelId, TenantId
from hanmaru_contracts.wire.directory import tenants_table
from hanmaru_operator.plan.access import may_be_granted
from hanmaru_operator.plan.tenant import (
    OfferedModel,
    TenantFacts,
    TenantObject,
    TenantSettings,
    TenantsPlan,
    TenantVerdict,
    plan_tenants,
)
from hanmaru_operator.types import ConditionType, Statement
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 1, tzinfo=UTC)
KEY, OTHER = "hmk_" + "k" * 40, "sk-brought-by-a-user"
A = TenantId("a")
SETTINGS = TenantSettings(
    namespaces=frozenset({"tenants", "partners"}),
    shared_domains={"everyone": None, "team": frozenset({A})},
    bands=frozenset({"standard", "gold"}),
)
MODELS = {
    ModelId("ml/k"): OfferedModel("k-exaone", Access.model_validate({"from": "All"}), owns_route=True),
    ModelId("ml/own"): OfferedModel("own", Access(), owns_route=True),
    ModelId("ml/gold"): OfferedModel(
        "gold",
        Access.model_validate({"from": "Selector", "selector": {"matchLabels": {"tier": "gold"}}}),
        owns_route=True,
    ),
    ModelId("ml/stolen"): OfferedModel("k-exaone", Access.model_validate({"from": "All"}), owns_route=False),
    ModelId("tenants/home"): OfferedModel("home", Access(), owns_route=True),
}
LABELS = {"tenants": {}, "partners": {"tier": "gold"}, "ml": {}}


def _secret_credential(name: str, secret: str, key: str = "key", **fields: Any) -> dict[str, Any]:
    return {"name": name, "apiKey": {"secretRef": {"name": secret, "key": key}}, **fields}


def _hash_credential(name: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "apiKey": {"sha256": api_key_digest(key)}, **fields}


def _tenant(
    name: str = "a",
    *credentials: dict[str, Any],
    namespace: str = "tenants",
    created_at: float = 1,
    models: Sequence[str] = ("ml/k",),
    **fields: Any,
) -> TenantObject:
    refs = [dict(zip(("namespace", "name"), model.split("/"), strict=True)) for model in models]
    spec = TenantSpec.model_validate({"credentials": credentials, "models": refs, **fields})
    return TenantObject(namespace, name, f"uid-{namespace}-{name}", 7, created_at, spec)


def _facts(
    *tenants: TenantObject,
    secrets: Mapping[tuple[str, str], Mapping[str, bytes]] | None = None,
    models: Mapping[ModelId, OfferedModel] = MODELS,
    settings: TenantSettings = SETTINGS,
    is_store_reachable: bool = True,
) -> TenantFacts:
    held = {("tenants", "s"): {"key": KEY.encode()}} if secrets is None else secrets
    return TenantFacts(tenants, held, models, LABELS, settings, is_store_reachable, NOW.timestamp())


def _verdict(plan: TenantsPlan, name: str = "a", namespace: str = "tenants") -> TenantVerdict:
    return plan.verdicts[(namespace, name)]


def _said(verdict: TenantVerdict, type_: ConditionType) -> Statement:
    [statement] = [one for one in verdict.statements if one.type is type_]
    return statement


def _digests(plan: TenantsPlan, tenant: str = "a") -> list[str | None]:
    return [credential.api_key.sha256 for credential in plan.specs[TenantId(tenant)].credentials]


def test_a_tenant_reaches_redis_with_hashes_and_granted_models_only() -> None:
    limits = [{"requestsPerMinute": 5}]
    plan = plan_tenants(
        _facts(
            _tenant(
                "a",
                _secret_credential("laptop", "s"),
                models=("ml/k", "ml/own"),
                limits=limits,
                scheduling={"band": "gold", "weight": 7},
            )
        )
    )
    [spec] = plan.specs.values()
    assert _digests(plan) == [api_key_digest(KEY)]
    assert spec.credentials[0].api_key.secret_ref is None
    assert [ref.id for ref in spec.models] == ["ml/k"]
    assert spec.limits[0].requests_per_minute == 5
    assert (spec.scheduling.band, spec.scheduling.weight) == ("gold", 7)
    verdict = _verdict(plan)
    assert verdict.generation == 7
    assert [(c.name, c.prefix, c.expires_at) for c in verdict.credentials] == [
        ("laptop", api_key_digest(KEY)[:8], None)
    ]
    assert verdict.models == ("k-exaone",)
    assert _said(verdict, ConditionType.AVAILABLE).is_true
    assert _said(verdict, ConditionType.NOT_ALLOWED).is_true is False
    assert _said(verdict, ConditionType.NAME_CONFLICT).is_true is False
    assert _said(verdict, ConditionType.DEGRADED).reason == "ModelNotGranted"


def test_tenants_count_only_in_tenant_namespaces() -> None:
    plan = plan_tenants(_facts(_tenant("a", _hash_credential("k", KEY), namespace="ml")))
    assert plan.specs == {}
    verdict = _verdict(plan, namespace="ml")
    assert _said(verdict, ConditionType.NOT_ALLOWED).reason == "NamespaceNotAllowed"
    assert _said(verdict, ConditionType.AVAILABLE).is_true is False
    assert (verdict.credentials, verdict.models) == ((), ())


def test_a_tenant_that_does_not_count_takes_neither_name_nor_key() -> None:
    plan = plan_tenants(
        _facts(
            _tenant("a", _hash_credential("k", KEY), namespace="ml", created_at=0),
            _tenant("a", _hash_credential("k", KEY)),
        )
    )
    assert _said(_verdict(plan), ConditionType.AVAILABLE).is_true
    assert _digests(plan) == [api_key_digest(KEY)]


def test_the_older_of_two_tenants_keeps_the_name() -> None:
    older = _tenant("a", _hash_credential("k", KEY), namespace="partners", created_at=1)
    younger = _tenant("a", _hash_credential("k", OTHER), namespace="tenants", created_at=2)
    plan = plan_tenants(_facts(younger, older))
    assert _digests(plan) == [api_key_digest(KEY)]
    conflict = _said(_verdict(plan), ConditionType.NAME_CONFLICT)
    assert (conflict.is_true, conflict.reason) == (True, "NameTaken")
    assert "`partners`" in conflict.message
    assert _said(_verdict(plan, namespace="partners"), ConditionType.NAME_CONFLICT).is_true is False
    assert plan_tenants(_facts(younger)).specs.keys() == {"a"}


@pytest.mark.parametrize("name", ["a.b", "A", "x" * 64])
def test_a_name_that_cannot_be_a_tenants_is_refused(name: str) -> None:
    plan = plan_tenants(_facts(_tenant(name, _hash_credential("k", KEY))))
    assert plan.specs == {}
    assert _said(_verdict(plan, name), ConditionType.AVAILABLE).reason == "NameInvalid"


def test_a_spec_that_cannot_be_read_gives_nothing_and_keeps_the_name() -> None:
    broken = replace(_tenant("a", created_at=0, namespace="partners"), spec=None, problem="spec.models: too long")
    plan = plan_tenants(_facts(broken, _tenant("a", _hash_credential("k", KEY))))
    assert plan.specs == {}
    told = _said(_verdict(plan, namespace="partners"), ConditionType.DEGRADED)
    assert (told.reason, told.is_true) == ("SpecInvalid", True)
    assert "spec.models: too long" in told.message
    assert _said(_verdict(plan), ConditionType.NAME_CONFLICT).is_true


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (None, "SecretMissing"),
        ({}, "SecretKeyMissing"),
        ({"other": KEY.encode()}, "SecretKeyMissing"),
        ({"key": b""}, "KeyEmpty"),
        ({"key": b" \r\n\t"}, "KeyEmpty"),
        ({"key": b"fifteen-bytes-x\n"}, "KeyTooShort"),
        ({"key": b"\xff\xfe" * 20}, "KeyUnusable"),
        ({"key": "비밀번호비밀번호".encode()}, "KeyUnusable"),
        ({"key": b"two words " * 3}, "KeyUnusable"),
        ({"key": b"k" * 20 + b"\x00" + b"k" * 20}, "KeyUnusable"),
        ({"key": b"k" * 257}, "KeyUnusable"),
    ],
)
def test_what_is_wrong_with_one_key_leaves_the_others_in_force(stored: dict[str, bytes] | None, reason: str) -> None:
    secrets = {("tenants", "s"): {"key": KEY.encode()}, ("partners", "bad"): {"key": OTHER.encode()}}
    if stored is not None:
        secrets[("tenants", "bad")] = stored
    plan = plan_tenants(
        _facts(_tenant("a", _secret_credential("bad", "bad"), _secret_credential("good", "s")), secrets=secrets)
    )
    assert _digests(plan) == [api_key_digest(KEY)]
    degraded = _said(_verdict(plan), ConditionType.DEGRADED)
    assert (degraded.is_true, degraded.reason) == (True, reason)
    assert "credential `bad`" in degraded.message
    assert _said(_verdict(plan), ConditionType.AVAILABLE).is_true


@pytest.mark.parametrize("stored", [KEY, KEY + "\n", f"\r\n {KEY}\t\n"])
def test_whitespace_around_a_key_is_not_part_of_it(stored: str) -> None:
    plan = plan_tenants(
        _facts(_tenant("a", _secret_credential("k", "s")), secrets={("tenants", "s"): {"key": stored.encode()}})
    )
    assert _digests(plan) == [api_key_digest(KEY)]
    assert _said(_verdict(plan), ConditionType.DEGRADED).is_true is False


def test_one_key_in_two_tenants_stays_the_older_ones() -> None:
    older = _tenant("old", _secret_credential("k", "s"), namespace="tenants", created_at=1)
    neighbour = _tenant("new", _hash_credential("k", KEY), _hash_credential("own", OTHER), created_at=2)
    stranger = _tenant("far", _hash_credential("k", KEY), namespace="partners", created_at=3)
    plan = plan_tenants(_facts(stranger, neighbour, older))
    assert _digests(plan, "old") == [api_key_digest(KEY)]
    assert _digests(plan, "new") == [api_key_digest(OTHER)]
    assert _digests(plan, "far") == []
    near, far = (
        _said(_verdict(plan, "new"), ConditionType.DEGRADED),
        _said(_verdict(plan, "far", "partners"), ConditionType.DEGRADED),
    )
    assert near.reason == far.reason == "KeyShared"
    assert "`old`" in near.message
    assert "old" not in far.message.replace("older", ""), "another namespace's tenants are not named"
    assert _said(_verdict(plan, "far", "partners"), ConditionType.AVAILABLE).reason == "NoCredential"


def test_one_key_twice_in_a_tenant_counts_once() -> None:
    plan = plan_tenants(_facts(_tenant("a", _secret_credential("one", "s"), _hash_credential("two", KEY))))
    assert [credential.name for credential in plan.specs[A].credentials] == ["one"]
    assert "credential `one`" in _said(_verdict(plan), ConditionType.DEGRADED).message


@pytest.mark.parametrize("how", [{"suspended": True}, {"expired": True}])
def test_a_key_of_a_suspended_tenant_or_an_expired_one_never_becomes_anothers(how: dict[str, bool]) -> None:
    expiry = {"expiresAt": "2026-10-01T00:00:00Z"} if how.get("expired") else {}
    older = _tenant("old", _hash_credential("k", KEY, **expiry), suspended=how.get("suspended", False))
    plan = plan_tenants(_facts(older, _tenant("new", _hash_credential("k", KEY), created_at=2)))
    assert _digests(plan, "new") == []


def test_expired_credentials_are_left_out_and_the_soonest_expiry_is_told() -> None:
    keys = [f"{KEY}{number}" for number in range(4)]
    plan = plan_tenants(
        _facts(
            _tenant(
                "a",
                _hash_credential("past", keys[0], expiresAt="2026-10-31T23:59:59Z"),
                _hash_credential("now", keys[1], expiresAt="2026-11-01T09:00:00+09:00"),
                _hash_credential("soon", keys[2], expiresAt="2026-11-01T00:00:30Z"),
                _hash_credential("later", keys[3], expiresAt="9999-12-31T23:59:59-10:00"),
            )
        )
    )
    assert _digests(plan) == [api_key_digest(keys[2]), api_key_digest(keys[3])]
    assert plan.next_change_at == NOW.timestamp() + 30
    assert [(c.name, c.expires_at) for c in _verdict(plan).credentials] == [
        ("soon", "2026-11-01T00:00:30+00:00"),
        ("later", "9999-12-31T23:59:59-10:00"),
    ]
    assert _said(_verdict(plan), ConditionType.DEGRADED).is_true is False
    assert plan_tenants(_facts(_tenant("a", _hash_credential("k", KEY)))).next_change_at is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"suspended": True}, "Suspended"),
        ({"models": ()}, "NoModel"),
        ({"models": ("ml/none",)}, "NoModel"),
    ],
)
def test_a_tenant_that_can_call_nothing_says_why(fields: dict[str, Any], reason: str) -> None:
    plan = plan_tenants(_facts(_tenant("a", _hash_credential("k", KEY), **fields)))
    assert _said(_verdict(plan), ConditionType.AVAILABLE) == Statement(
        ConditionType.AVAILABLE, False, reason, _said(_verdict(plan), ConditionType.AVAILABLE).message
    )
    assert plan.specs[A].suspended is fields.get("suspended", False)


@pytest.mark.parametrize(
    ("namespace", "model", "is_granted", "told"),
    [
        ("tenants", "ml/k", True, ""),
        ("tenants", "ml/own", False, "does not allow Tenants of namespace `tenants`"),
        ("tenants", "ml/gold", False, "does not allow"),
        ("partners", "ml/gold", True, ""),
        ("tenants", "tenants/home", True, ""),
        ("partners", "tenants/home", False, "does not allow"),
        ("tenants", "ml/none", False, "no such ModelDeployment"),
        ("tenants", "ml/stolen", False, "route name belongs to another namespace"),
    ],
)
def test_a_model_is_granted_only_by_both_sides(namespace: str, model: str, is_granted: bool, told: str) -> None:
    tenant = _tenant("a", _hash_credential("k", KEY), namespace=namespace, models=(model, model))
    plan = plan_tenants(_facts(tenant))
    assert [ref.id for ref in plan.specs[A].models] == ([model] if is_granted else [])
    degraded = _said(_verdict(plan, namespace=namespace), ConditionType.DEGRADED)
    assert degraded.is_true is not is_granted
    assert told in degraded.message


@pytest.mark.parametrize(
    ("name", "domain", "own"),
    [("a", "team", False), ("b", "team", True), ("b", "everyone", False), ("a", "unknown", True)],
)
def test_a_shared_cache_must_be_granted_or_the_tenant_has_its_own(name: str, domain: str, own: bool) -> None:
    tenant = _tenant(name, _hash_credential("k", KEY), isolation={"type": "Shared", "shared": {"name": domain}})
    plan = plan_tenants(_facts(tenant))
    tenant_id = TenantId(name)
    expected = f"own:{name}" if own else f"shared:{domain}"
    assert plan.specs[tenant_id].isolation_domain(tenant_id) == expected
    not_allowed = _said(_verdict(plan, name), ConditionType.NOT_ALLOWED)
    assert (not_allowed.is_true, not_allowed.reason) == (
        (True, "SharedIsolationNotGranted") if own else (False, "Allowed")
    )
    assert _said(_verdict(plan, name), ConditionType.AVAILABLE).is_true


def test_an_unknown_band_is_the_usual_one() -> None:
    plan = plan_tenants(_facts(_tenant("a", _hash_credential("k", KEY), scheduling={"band": "vip", "weight": 3})))
    assert (plan.specs[A].scheduling.band, plan.specs[A].scheduling.weight) == ("standard", 3)
    assert _said(_verdict(plan), ConditionType.DEGRADED).reason == "BandUnknown"


def test_while_redis_is_away_nobody_claims_that_a_tenant_is_available() -> None:
    plan = plan_tenants(_facts(_tenant("a", _hash_credential("k", KEY)), is_store_reachable=False))
    available = _said(_verdict(plan), ConditionType.AVAILABLE)
    assert (available.is_true, available.reason) == (None, "StoreUnreachable")
    assert _said(_verdict(plan), ConditionType.DEGRADED).reason == "StoreUnreachable"
    assert A in plan.specs, "what is to be written does not depend on it"


def test_a_message_stays_short_whatever_is_wrong() -> None:
    plan = plan_tenants(_facts(_tenant("a", models=[f"ml/none-{number}" for number in range(256)])))
    message = _said(_verdict(plan), ConditionType.DEGRADED).message
    assert message.endswith("and 246 more")
    assert len(message) < 2000


# --- invariants ----------------------------------------------------------------------------------------------------

_KEYS = [f"hmk_{letter * 30}" for letter in "pqr"]
_stored = st.sampled_from(_KEYS).map(str.encode) | st.sampled_from([b"", b" ", b"short-secret", b"\xff" * 20])
_secrets = st.dictionaries(
    st.tuples(st.sampled_from(["tenants", "partners"]), st.sampled_from(["s", "t"])),
    st.dictionaries(st.sampled_from(["key", "other"]), _stored, max_size=2),
    max_size=4,
)
_expiry = st.sampled_from([{}, {"expiresAt": "2026-10-01T00:00:00Z"}, {"expiresAt": "2026-12-01T00:00:00Z"}])
_credential = st.builds(
    lambda secret, key, expiry: _secret_credential("x", secret, key, **expiry),
    st.sampled_from(["s", "t", "none"]),
    st.sampled_from(["key", "other"]),
    _expiry,
) | st.builds(lambda key, expiry: _hash_credential("x", key, **expiry), st.sampled_from(_KEYS), _expiry)
_tenants = st.lists(
    st.builds(
        lambda name, credentials, namespace, created_at, models, suspended: _tenant(
            name,
            *({**credential, "name": f"c{number}"} for number, credential in enumerate(credentials)),
            namespace=namespace,
            created_at=created_at,
            models=models,
            suspended=suspended,
        ),
        st.sampled_from(["a", "b", "c"]),
        st.lists(_credential, max_size=3),
        st.sampled_from(["tenants", "partners", "ml"]),
        st.integers(0, 2),
        st.lists(st.sampled_from([*MODELS, "ml/none"]), max_size=3),
        st.booleans(),
    ),
    unique_by=lambda tenant: (tenant.namespace, tenant.name),
    max_size=6,
)


@settings(max_examples=200)
@given(_tenants, _secrets, st.integers())
def test_whatever_is_asked_for_keys_have_one_owner_and_models_two_sides(
    tenants: list[TenantObject], secrets: dict[tuple[str, str], dict[str, bytes]], seed: int
) -> None:
    facts = _facts(*tenants, secrets=secrets)
    plan = plan_tenants(facts)

    digests = [credential.api_key.sha256 for spec in plan.specs.values() for credential in spec.credentials]
    assert len(digests) == len(set(digests)), "a key belongs to one tenant at most"
    assert set(plan.verdicts) == {(tenant.namespace, tenant.name) for tenant in tenants}

    holders = {tenant.uid: tenant for tenant in tenants if _said_available(plan, tenant)}
    assert len(holders) == len({tenant.name for tenant in holders.values()})
    for tenant in tenants:
        if tenant.namespace not in SETTINGS.namespaces:
            assert not _said_available(plan, tenant)
    for name, spec in plan.specs.items():
        owners = [t for t in tenants if t.name == name and t.namespace in SETTINGS.namespaces]
        owner = min(owners, key=lambda tenant: tenant.age)
        for ref in spec.models:
            assert owner.spec is not None
            assert ref in owner.spec.models
            assert MODELS[ref.id].owns_route
            assert may_be_granted(MODELS[ref.id].access, ref.namespace, owner.namespace, LABELS)

    written = "".join(tenants_table(plan.specs).entries.values())
    shown = repr(plan.verdicts) + repr(plan) + repr(facts) + written
    assert not [key for key in (*_KEYS, "short-secret") if key in shown], "no key leaves the plan"

    shuffled = list(tenants)
    random.Random(seed).shuffle(shuffled)
    again = plan_tenants(
        replace(
            facts,
            tenants=shuffled,
            secrets=dict(reversed(secrets.items())),
            models=dict(reversed(MODELS.items())),
        )
    )
    assert again == plan
    assert tenants_table(again.specs) == tenants_table(plan.specs)


def _said_available(plan: TenantsPlan, tenant: TenantObject) -> bool:
    return bool(_said(_verdict(plan, tenant.name, tenant.namespace), ConditionType.AVAILABLE).is_true)
