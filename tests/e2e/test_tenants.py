"""Tenants by kubectl: who may call, from when, until when, and where a Tenant means nothing."""

from __future__ import annotations

import time

import pytest
from hanmaru_contracts.crd.kinds import GROUP, VERSION
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import condition
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.release import Release
from hanmaru_e2e.world import MODELS, Clients, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BOUND_S = 5.0


def test_a_tenant_may_call_within_five_seconds_and_not_five_seconds_after_its_deletion(
    world: World, clients: Clients, model: str, progress: Progress
) -> None:
    made_s = time.monotonic()
    key = world.tenant("newcomer", [(names.NAMESPACE, model)])
    world.kube.wait("the tenant is answered", lambda: clients.ask("openai", key, model)["status"] == 200, within_s=20)
    progress.fact("tenantUsableSeconds", round(time.monotonic() - made_s, 2))
    assert progress.facts["tenantUsableSeconds"] <= BOUND_S

    world.kube.kubectl("-n", names.NAMESPACE, "delete", "tenant", "newcomer")
    gone_s = time.monotonic()
    world.kube.wait("the tenant is refused", lambda: clients.ask("models", key, model)["status"] == 401, within_s=20)
    progress.fact("tenantRefusedSeconds", round(time.monotonic() - gone_s, 2))
    assert progress.facts["tenantRefusedSeconds"] <= BOUND_S


def test_a_tenant_outside_the_tenant_namespaces_gets_nothing(world: World, clients: Clients, model: str) -> None:
    key = world.tenant("stranger", [(names.NAMESPACE, model)], namespace=MODELS)
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{MODELS}/tenants/stranger"
    why = world.kube.wait("the tenant is told", lambda: condition(world.kube.get(path), "NotAllowed"), within_s=30)
    assert (why["status"], why["reason"]) == ("True", "NamespaceNotAllowed")
    assert clients.ask("models", key, model)["status"] == 401
    world.kube.delete(path)


def test_a_second_claimant_of_a_name_gets_no_pod_and_no_request(
    world: World, release: Release, clients: Clients, model: str
) -> None:
    world.claims(MODELS)
    world.deploy("thief", names.POOL, route={"name": model})
    why = world.kube.wait("the name is refused", lambda: world.condition("thief", "NameConflict"), within_s=60)
    assert why["status"] == "True"
    assert not world.workers("thief")
    key = world.tenant("victim", [(MODELS, "thief")])
    world.kube.wait("the key is known", lambda: clients.ask("models", key, model)["status"] == 200, within_s=20)
    assert clients.ask("models", key, model)["models"] == []
    assert clients.ask("openai", key, model)["status"] == 404
    world.kube.delete(world.deployment_path("thief"))
    world.kube.kubectl("-n", names.NAMESPACE, "delete", "tenant", "victim")
