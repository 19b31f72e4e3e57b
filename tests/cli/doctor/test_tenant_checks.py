from __future__ import annotations

from typing import Any

import pytest
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.tenant_checks import check_tenants
from hanmaru_testing.doctor_world import at, listed, named, tenant, unseen, words, world, worst

FALSE = ("Available", "False")
BY_SECRET = {"credentials": [{"name": "laptop", "apiKey": {"secretRef": {"name": "key", "key": "k"}}}]}


def expiring(seconds: float) -> dict[str, Any]:
    return {"credentials": [{"name": "laptop", "apiKey": {"sha256": "0" * 64}, "expiresAt": at(-seconds)}]}


@pytest.mark.parametrize(
    ("one", "mark", "said"),
    [
        (tenant(), Mark.OK, ""),
        (tenant((*FALSE, "NoCredential", "no key is in force")), Mark.FAIL, "hanmaru key new"),
        (tenant((*FALSE, "NamespaceNotAllowed", "not a tenant namespace")), Mark.FAIL, "tenantNamespaces"),
        (tenant((*FALSE, "Suspended", "")), Mark.NOTE, "suspended"),
        (
            tenant(("Available", "True", "Ready", ""), ("Degraded", "True", "KeyTooShort", "laptop")),
            Mark.WARN,
            "laptop",
        ),
        (tenant(("Other", "True", "", "")), Mark.WARN, "has not looked"),
        (tenant(spec=expiring(3600)), Mark.WARN, "expires in 0.0 days"),
        (tenant(spec=expiring(-3600)), Mark.WARN, "expired on"),
        (tenant(spec=expiring(90 * 86_400)), Mark.OK, ""),
        (tenant(spec=BY_SECRET), Mark.FAIL, "there is no Secret key"),
    ],
)
def test_who_cannot_call_is_told_why(one: Any, mark: Mark, said: str) -> None:
    findings = check_tenants(world(tenants=listed(one)))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_a_secret_that_is_there_or_cannot_be_seen_is_not_complained_of() -> None:
    for secrets in (listed(named("key", "hanmaru")), unseen()):
        assert worst(check_tenants(world(tenants=listed(tenant(spec=BY_SECRET)), secrets=secrets))) is Mark.OK
