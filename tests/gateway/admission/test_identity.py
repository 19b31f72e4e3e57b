"""A key leads to its tenant, and everything else to one and the same refusal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import ApiKey, Credential, TenantSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.keys import api_key_digest, new_api_key
from hanmaru_contracts.names import TenantId
from hanmaru_gateway.admission.identity import Directory
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 1, tzinfo=UTC)
KEY, OTHER, OLD, STOPPED = (new_api_key() for _ in range(4))
A, B = TenantId("a"), TenantId("b")


def _credential(key: str, name: str = "laptop", expires_at: datetime | None = None) -> Credential:
    return Credential(name=name, api_key=ApiKey(sha256=api_key_digest(key)), expires_at=expires_at)


def _directory() -> Directory:
    return Directory(
        {
            A: TenantSpec(credentials=(_credential(KEY), _credential(OLD, "old", NOW))),
            B: TenantSpec(credentials=(_credential(OTHER),)),
            TenantId("c"): TenantSpec(credentials=(_credential(STOPPED),), suspended=True),
        }
    )


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_a_key_leads_to_its_tenant(header: str) -> None:
    identity = _directory().identify(header, NOW)
    assert (identity.tenant, identity.credential) == (A, "laptop")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {new_api_key()}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}",
        f"Bearer {api_key_digest(KEY)}",
        f"Basic {KEY}",
        KEY,
        f"Bearer\t{KEY}",
        f"Bearer {KEY} {KEY}",
        f"Bearer {OLD}",
        f"Bearer {STOPPED}",
        "Bearer ключ",
        "Bearer \udcff",
        "Bearer \x00",
        "Bearer " + "x" * 10_000_000,
    ],
)
def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(header: str | None) -> None:
    with pytest.raises(HanmaruError) as caught:
        _directory().identify(header, NOW)
    with pytest.raises(HanmaruError) as unknown:
        _directory().identify("Bearer unknown", NOW)
    assert caught.value.code is ErrorCode.INVALID_API_KEY
    assert caught.value.message == unknown.value.message
    assert (
        header is None or header.partition(" ")[2] not in caught.value.message or not header.partition(" ")[2].strip()
    )


def test_a_credential_works_until_the_moment_it_expires() -> None:
    assert _directory().identify(f"Bearer {OLD}", NOW - timedelta(microseconds=1)).credential == "old"


def test_a_key_that_stands_with_two_tenants_opens_neither() -> None:
    directory = Directory(
        {A: TenantSpec(credentials=(_credential(KEY),)), B: TenantSpec(credentials=(_credential(KEY),))}
    )
    assert directory.shared_keys == ("a/laptop", "b/laptop")
    with pytest.raises(HanmaruError):
        directory.identify(f"Bearer {KEY}", NOW)


@given(st.text(max_size=300))
def test_no_header_breaks_the_door(header: str) -> None:
    with pytest.raises(HanmaruError):
        _directory().identify(header, NOW)


@given(st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=6))
def test_each_of_many_keys_leads_to_its_own_tenant(numbers: list[int]) -> None:
    tenants = {TenantId(f"t{n}"): TenantSpec(credentials=(_credential(f"key-{n}"),)) for n in numbers}
    directory = Directory(tenants)
    assert len(directory) == len(numbers)
    for number in numbers:
        assert directory.identify(f"Bearer key-{number}", NOW).tenant == f"t{number}"
