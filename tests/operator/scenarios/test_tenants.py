"""Tenants, grants and names: what is written on the cluster is what gateways find in Redis, soon, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.operator_process import OperatorProcess
from hanmaru_testing.operator_world import World, condition
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.tenant_world import TenantWorld, by_hash, by_secret, digests

SOON_S = 2.0
"""From a change to what gateways read."""


@pytest.fixture(scope="module")
def keys() -> list[str]:
    """Every key that the tests of this module make."""
    return []


@pytest.fixture
def tenants(world: World, scenario_redis: RedisServer, system_namespace: str, keys: list[str]) -> Iterator[TenantWorld]:
    with TenantWorld(world.api, scenario_redis, system_namespace, world.suffix, keys) as made:
        yield made


@pytest.fixture
def elsewhere(control_plane: ControlPlane, world: World) -> Iterator[World]:
    """Another namespace, of other people."""
    name = f"{world.namespace}-b"
    control_plane.create_namespace(name)
    with World(control_plane.api, name, world.nodes) as other:
        yield other
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


# --- keys ------------------------------------------------------------------------------------------------------------


def test_each_change_of_a_key_is_in_redis_within_two_seconds(world: World, tenants: TenantWorld) -> None:
    def soon(what: str, is_so: Callable[[], Any]) -> None:
        world.wait(what, is_so, within_s=SOON_S)

    old, new, third = (tenants.new_key() for _ in range(3))
    secret = tenants.write_secret("credential", old)
    tenants.create("acme", credentials=by_secret(secret))
    soon("made", lambda: tenants.hashes("acme") == digests([old]))
    tenants.write_secret("credential", new)
    soon("the Secret's key replaced", lambda: tenants.hashes("acme") == digests([new]))
    tenants.patch("acme", credentials=by_hash(new, third))
    soon("two at once, by their hashes", lambda: tenants.hashes("acme") == digests([new, third]))
    tenants.patch("acme", credentials=by_hash(third))
    soon("one taken away", lambda: tenants.hashes("acme") == digests([third]))
    tenants.patch("acme", suspended=True)
    soon("suspended", lambda: (tenants.granted("acme") or {})["suspended"])
    tenants.patch("acme", suspended=False, credentials=by_secret(secret))
    soon("back", lambda: tenants.hashes("acme") == digests([new]) and not (tenants.granted("acme") or {})["suspended"])
    tenants.delete_secret("credential")
    soon("its Secret deleted", lambda: tenants.granted("acme") is not None and not tenants.hashes("acme"))
    tenants.delete("acme")
    soon("gone", lambda: tenants.granted("acme") is None)


def test_a_key_ends_at_its_time_by_itself(world: World, tenants: TenantWorld) -> None:
    passing, lasting = tenants.new_key(), tenants.new_key()
    end = datetime.now(UTC) + timedelta(seconds=3)
    first, second = by_hash(passing, lasting)
    tenants.create("acme", credentials=[{**first, "expiresAt": end.isoformat(timespec="seconds")}, second])
    world.wait("both work", lambda: tenants.hashes("acme") == digests([passing, lasting]), within_s=SOON_S)
    left_s = end.timestamp() - time.time()
    world.wait("one is over", lambda: tenants.hashes("acme") == digests([lasting]), within_s=left_s + SOON_S)
    names = [each["name"] for each in tenants.get("acme")["status"]["credentials"]]
    assert names == ["k1"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "SecretMissing"),
        (b"", "KeyEmpty"),
        (b"\n", "KeyEmpty"),
        (b"short", "KeyTooShort"),
        (b"a key with spaces in it", "KeyUnusable"),
    ],
    ids=["missing", "empty", "a-line-break-alone", "short", "spaces"],
)
def test_a_secret_without_a_key_is_said_and_mended(
    world: World, tenants: TenantWorld, value: bytes | None, reason: str
) -> None:
    good = tenants.new_key()
    if value is not None:
        tenants.write_secret("credential", value)
    tenants.create("acme", credentials=[*by_secret(tenants.named("credential")), {**by_hash(good)[0], "name": "good"}])
    world.wait(reason, lambda: condition(tenants.get("acme"), "Degraded").get("reason") == reason)
    degraded = condition(tenants.get("acme"), "Degraded")
    assert degraded["status"] == "True"
    assert tenants.named("credential") in degraded["message"]
    world.wait("the rest is in force", lambda: tenants.hashes("acme") == digests([good]), within_s=SOON_S)
    mended = tenants.new_key()
    tenants.write_secret("credential", f"{mended}\n")  # as an editor leaves it
    world.wait("mended", lambda: tenants.hashes("acme") == digests([good, mended]), within_s=SOON_S)
    world.wait("said", lambda: condition(tenants.get("acme"), "Degraded").get("status") == "False")


def test_a_key_belongs_to_the_older_of_two_tenants(world: World, tenants: TenantWorld) -> None:
    key, own = tenants.new_key(), tenants.new_key()
    tenants.create("old", credentials=by_hash(key))
    world.wait("the first has it", lambda: tenants.hashes("old") == digests([key]))
    time.sleep(1.1)  # an API server's times are whole seconds
    tenants.create("young", credentials=by_hash(key, own))
    world.wait("the second has its other one", lambda: tenants.hashes("young") == digests([own]))
    found = world.wait("said", lambda: condition(tenants.get("young"), "Degraded"))
    assert found["reason"] == "KeyShared"
    assert tenants.named("old") in found["message"]
    assert tenants.hashes("old") == digests([key])
    tenants.delete("old")
    world.wait("the key is free", lambda: tenants.hashes("young") == digests([key, own]), within_s=SOON_S)


def test_a_tenant_outside_its_namespaces_gets_nothing(world: World, tenants: TenantWorld) -> None:
    tenants.create("acme", namespace=world.namespace, credentials=by_hash(tenants.new_key()))
    found = world.wait(
        "said", lambda: condition(tenants.get("acme", namespace=world.namespace), "NotAllowed"), within_s=SOON_S
    )
    assert (found["status"], found["reason"]) == ("True", "NamespaceNotAllowed")
    assert tenants.granted("acme") is None


# --- models, pools, names --------------------------------------------------------------------------------------------


def test_a_tenant_may_call_what_both_sides_agreed_to(world: World, tenants: TenantWorld) -> None:
    world.add_nodes("small", 2)
    world.deploy("k-exaone", [world.pool("small")])
    model = f"{world.namespace}/k-exaone"
    refs = [{"namespace": world.namespace, "name": name} for name in ("k-exaone", "typo")]
    tenants.create("acme", credentials=by_hash(tenants.new_key()), models=refs)
    world.wait("not granted", lambda: condition(tenants.get("acme"), "Degraded").get("reason") == "ModelNotGranted")
    message = condition(tenants.get("acme"), "Degraded")["message"]
    assert f"`{model}`" in message
    assert f"`{world.namespace}/typo`" in message
    assert tenants.models("acme") == []
    world.patch("k-exaone", {"access": {"from": "All"}})
    world.wait("granted", lambda: tenants.models("acme") == [model], within_s=SOON_S)
    assert tenants.route(world.named("k-exaone")) == {model: 100}
    world.patch("k-exaone", {"access": {"from": "Selector", "selector": {"matchLabels": {"kind": "nobody"}}}})
    world.wait("taken back", lambda: tenants.models("acme") == [], within_s=SOON_S)


def test_a_pool_takes_only_the_namespaces_it_names(control_plane: ControlPlane, world: World) -> None:
    world.add_nodes("small", 2)
    allowed = {"from": "Selector", "selector": {"matchLabels": {"team": world.suffix}}}
    pool = world.pool("small", allowedNamespaces=allowed)
    world.deploy("k-exaone", [pool])
    found = world.wait("said", lambda: world.condition("k-exaone", "NotAllowed"))
    assert (found["status"], found["reason"]) == ("True", "PoolNotAllowed")
    assert pool in found["message"]
    assert world.groups("k-exaone") == []
    control_plane.api.patch(f"/api/v1/namespaces/{world.namespace}", {"metadata": {"labels": {"team": world.suffix}}})
    world.wait_ready("k-exaone")
    assert world.condition("k-exaone", "NotAllowed") == {}


def test_a_licence_that_is_not_accepted_starts_nothing(world: World) -> None:
    world.add_nodes("small", 2)
    world.deploy("k-exaone", [world.pool("small")], licence={"accepted": "another"})
    found = world.wait("said", lambda: world.condition("k-exaone", "LicenceNotAccepted"))
    assert found["status"] == "True"
    assert "K-EXAONE AI Model License" in found["message"]
    assert world.groups("k-exaone") == []
    assert world.pods("k-exaone") == []
    world.patch("k-exaone", {"licence": {"accepted": "K-EXAONE AI Model License"}})
    world.wait_ready("k-exaone")
    assert world.condition("k-exaone", "LicenceNotAccepted") == {}


def test_the_second_claimant_of_a_route_name_gets_nothing_until_the_first_goes(
    world: World, elsewhere: World, tenants: TenantWorld
) -> None:
    world.add_nodes("small", 4)
    pool = world.pool("small")
    route = world.named("k-exaone")
    world.deploy("k-exaone", [pool])
    world.wait_ready("k-exaone")
    elsewhere.deploy("taker", [pool], route={"name": route})
    found = elsewhere.wait("said", lambda: elsewhere.condition("taker", "NameConflict"))
    assert (found["status"], found["reason"]) == ("True", "RouteTaken")
    assert f"`{world.namespace}`" in found["message"]
    assert tenants.route(route) == {f"{world.namespace}/k-exaone": 100}
    pods = elsewhere.api.get(f"/api/v1/namespaces/{elsewhere.namespace}/pods")["items"]
    assert pods == [], "not even one that reads its checkpoint"
    world.delete("k-exaone")
    elsewhere.wait_ready("taker")
    elsewhere.wait("it is told", lambda: tenants.route(route) == {f"{elsewhere.namespace}/taker": 100}, within_s=SOON_S)
    assert elsewhere.condition("taker", "NameConflict") == {}


# --- and nobody sees a key -------------------------------------------------------------------------------------------


def test_no_key_was_shown_anywhere(
    kubectl: Kubectl, world: World, tenants: TenantWorld, operator: OperatorProcess, keys: list[str]
) -> None:
    """After all of the above: not in a status, an event, an object we make, the log or a metric."""
    key = tenants.new_key()
    secret = tenants.write_secret("credential", key)
    tenants.create("acme", credentials=by_secret(secret))
    world.wait("it works", lambda: tenants.hashes("acme") == digests([key]))
    kinds = "tenants,modeldeployments,acceleratorpools,events,configmaps,controllerrevisions,pods,statefulsets,leases"
    shown = kubectl("get", kinds, "-A", "-o", "json") + operator.log.read_text() + operator.get("/metrics")[1]
    assert "hanmaru_operator" in shown
    assert json.dumps(tenants.named("acme")) in shown
    assert not [key for key in keys if key in shown or key[8:28] in shown]
