"""A tenant is refused where its words could mean two things."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import NamedTenant, TenantsFile, TenantSpec
from hanmaru_contracts.names import TenantId
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

HASH = "a" * 64


def _credential(**fields: object) -> dict[str, object]:
    return {"name": "k", "apiKey": {"sha256": HASH}} | fields


def _tenant(name: str, *hashes: str) -> dict[str, object]:
    return {"name": name, "credentials": [{"name": f"c{i}", "apiKey": {"sha256": h}} for i, h in enumerate(hashes)]}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"credentials": [_credential(apiKey={"sha256": "a" * 63})]}, "63 characters"),
        ({"credentials": [_credential(apiKey={"sha256": "A" * 64})]}, "lower-case"),
        ({"credentials": [_credential(apiKey={"sha256": "a" * 64 + "\n"})]}, "65 characters"),
        ({"credentials": [_credential(name="Not A Name")]}, "pattern"),
        ({"credentials": [_credential(type="Password")]}, "APIKey"),
        ({"credentials": [_credential(apiKey={})]}, "exactly one"),
        ({"credentials": [_credential(expiresAt="2027-01-01T00:00:00")]}, "timezone"),
        ({"credentials": [_credential(key="hmk_x")]}, "Extra inputs"),
        ({"credentials": [_credential(), _credential()]}, "two credentials have the same name"),
        ({"limits": [{}, {}]}, "two limits have the same name"),
        ({"limits": [{"requestsPerMinute": 0}]}, "greater than 0"),
        ({"limits": [{"inputTokensPerMinute": -1}]}, "greater than 0"),
        ({"limits": [{"outputTokensPerMinute": 1.5}]}, "integer"),
        ({"models": [{"namespace": "default"}]}, "required"),
        ({"models": [{"namespace": "a/b", "name": "c"}]}, "pattern"),
        ({"isolation": {"type": "Shared"}}, "exactly when"),
        ({"isolation": {"type": "Own", "shared": {"name": "x"}}}, "exactly when"),
        ({"isolation": {"type": "None"}}, "Own"),
        ({"priority": 5}, "Extra inputs"),
    ],
)
def test_a_spec_that_is_wrong_is_refused(spec: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TenantSpec.model_validate(spec, extra="forbid")


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ([_tenant("a"), _tenant("a")], "the same tenant name"),
        ([_tenant("a", HASH), _tenant("b", HASH)], "the same API key"),
        ([_tenant("a", HASH, HASH)], "the same API key"),
        ([{"credentials": []}], "required"),
        ([_tenant("-a")], "pattern"),
        (
            [{"name": "a", "credentials": [_credential(apiKey={"secretRef": {"name": "s", "key": "k"}})]}],
            "needs Kubernetes",
        ),
    ],
)
def test_a_file_whose_keys_have_two_owners_is_refused(tenants: list[object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TenantsFile.model_validate({"tenants": tenants})


def test_a_spec_survives_its_way_through_redis() -> None:
    tenant = NamedTenant.model_validate(
        {
            "name": "a",
            "credentials": [_credential(expiresAt="2027-01-01T00:00:00+09:00")],
            "models": [{"namespace": "default", "name": "k"}],
            "limits": [{"name": "l", "models": [{"namespace": "default", "name": "k"}], "requestsPerMinute": 1}],
            "isolation": {"type": "Shared", "shared": {"name": "team"}},
            "suspended": True,
        }
    )
    json = tenant.model_dump_json(by_alias=True, exclude={"name"}, exclude_none=True)
    spec = TenantSpec.model_validate_json(json)
    assert spec == TenantSpec.model_validate(tenant.model_dump(exclude={"name"}))
    assert spec.credentials[0].expires_at == datetime(2026, 12, 31, 15, tzinfo=UTC)
    assert spec.models[0].id == "default/k"


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True), st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True)
)
def test_a_shared_cache_domain_is_never_a_tenants_own(tenant: str, shared: str) -> None:
    own = TenantSpec().isolation_domain(TenantId(tenant))
    joint = TenantSpec.model_validate({"isolation": {"type": "Shared", "shared": {"name": shared}}})
    assert own != joint.isolation_domain(TenantId(tenant))
    assert joint.isolation_domain(TenantId(tenant)) == joint.isolation_domain(TenantId(tenant + "x"))
    assert own != TenantSpec().isolation_domain(TenantId(tenant + "x"))
