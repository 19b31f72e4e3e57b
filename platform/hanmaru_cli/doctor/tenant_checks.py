"""Tenants: who can call, who cannot, and why, in the operator's words. Pure. No key is known: Secrets by name only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from pydantic import ValidationError

from hanmaru_cli.doctor.finding import Finding, Mark, ok
from hanmaru_cli.doctor.objects import Ours
from hanmaru_cli.doctor.world import World

SOON_S = 7 * 86_400.0
"""A credential that expires within this is said."""
_TO_DO = {
    "NamespaceNotAllowed": "move the Tenant to one of the operator's tenantNamespaces, or add its namespace there",
    "NoCredential": "add a credential: `hanmaru key new` prints a key and its hash",
    "NoModel": "name a ModelDeployment in spec.models whose access allows the Tenant's namespace",
    "NameTaken": "an older Tenant has this name: rename this one",
    "StoreUnreachable": "the operator does not reach Redis: see the release's lines",
}


def check_tenants(world: World) -> list[Finding]:
    """Every tenant, or that there is none."""
    if not world.tenants.is_served:
        return []
    if world.tenants.unseen:
        return world.tenants.cannot_look("tenant", "Tenants")
    if not world.tenants.items:
        seen = "there is no Tenant: nobody can call"
        return [Finding(Mark.NOTE, "tenant", "", seen, to_do="`hanmaru key new`, and a Tenant with the hash")]
    found = [line for one in world.tenants for line in _tenant(one, world)]
    return found or [ok("tenant", f"{len(world.tenants.items)} tenants, each with a key in force")]


def _tenant(one: Ours, world: World) -> Iterable[Finding]:
    subject = f"tenant/{one.where}"
    available, degraded = one.says("Available"), one.says("Degraded")
    if not available.type:
        seen = "the operator has not looked at it"
        yield Finding(Mark.WARN, "tenant", subject, seen, to_do="does the operator run and lead? See the lines above")
    elif available.reason == "Suspended":
        yield Finding(Mark.NOTE, "tenant", subject, "suspended: its keys are refused")
    elif available.status != "True":
        to_do = _TO_DO.get(available.reason, f"`kubectl describe {subject}`")
        yield Finding(Mark.FAIL, "tenant", subject, f"{available.reason}: {available.message}", to_do=to_do)
    if degraded.status == "True" and degraded.reason != available.reason:
        seen = f"{degraded.reason}: {degraded.message}"
        yield Finding(Mark.WARN, "tenant", subject, seen, to_do="mend it, or take it out of the Tenant")
    yield from _credentials(one, world, subject)


def _credentials(one: Ours, world: World, subject: str) -> Iterable[Finding]:
    try:
        spec = TenantSpec.model_validate(one.spec)
    except ValidationError:
        return  # the operator says so in its condition
    secrets = {(secret.metadata.namespace, secret.metadata.name) for secret in world.secrets}
    for credential in spec.credentials:
        ref = credential.api_key.secret_ref
        place = one.metadata.namespace
        if ref is not None and not world.secrets.unseen and (place, ref.name) not in secrets:
            seen = f"credential {credential.name}: there is no Secret {ref.name}"
            to_do = f"kubectl create secret generic {ref.name} -n {place} --from-file={ref.key}=FILE"
            yield Finding(Mark.FAIL, "tenant", subject, seen, f"it, with the entry {ref.key}", to_do)
        if credential.expires_at is None:
            continue
        left_s = _seconds(credential.expires_at) - world.now
        if left_s <= 0:
            seen = f"credential {credential.name} expired on {credential.expires_at:%Y-%m-%d}"
            yield Finding(Mark.WARN, "tenant", subject, seen, to_do="add another credential, and take this one out")
        elif left_s < SOON_S:
            seen = f"credential {credential.name} expires in {left_s / 86_400:.1f} days"
            yield Finding(Mark.WARN, "tenant", subject, seen, to_do="add another credential beside it now")


def _seconds(at: datetime) -> float:
    return at.timestamp()
