"""What breaks around the operator: it waits, says so, and afterwards everything is as it was asked for. Once.

One operator for all of it, with a lease that outlives an API server's restart, a clock that tests set, and a proxy on
its way to the API server. The operator's own death is `test_killed`'s, nodes and devices are `test_repairs`'.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanmaru_cluster.api import ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts import metrics
from hanmaru_contracts.crd import kinds as crd
from hanmaru_operator import kinds
from hanmaru_operator.store import connect
from hanmaru_redis.settings import access_to
from hanmaru_testing.api_proxy import ApiProxy
from hanmaru_testing.clock import JumpingClock
from hanmaru_testing.crds import install
from hanmaru_testing.facts_pods import FactsPods
from hanmaru_testing.fleet import worker
from hanmaru_testing.operator_process import LEASE, PLATFORM_SECRET, OperatorProcess
from hanmaru_testing.operator_world import World, condition
from hanmaru_testing.planning import CONFIGS
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.tenant_world import TenantWorld, by_hash, digests

LONG_LEASE = {"leaseS": 60.0, "renewDeadlineS": 45.0, "retryS": 0.5}
BACK_S = 20.0
"""Until watches that broke are followed again: kopf waits up to 5 s between tries."""
RESTORED_S = 10.0
"""From Redis's return to the last entry."""
TWO_HOURS_S = 7200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def proxy(control_plane: ControlPlane, folder: Path) -> Iterator[ApiProxy]:
    with ApiProxy(control_plane.kubeconfig, folder) as running:
        yield running


@pytest.fixture(scope="module")
def clock(folder: Path) -> JumpingClock:
    return JumpingClock(folder)


@pytest.fixture(scope="module")
def enduring(
    operator: OperatorProcess,
    proxy: ApiProxy,
    clock: JumpingClock,
    folder: Path,
    scenario_redis: RedisServer,
    system_namespace: str,
) -> Iterator[OperatorProcess]:
    """The operator of this module; the shared one rests."""
    with (
        operator.at_rest(),
        OperatorProcess(
            folder,
            kubeconfig=proxy.kubeconfig,
            redis_url=scenario_redis.url,
            namespace=system_namespace,
            name="enduring-0",
            environ=clock.environ,
            lease=LONG_LEASE,
        ) as running,
    ):
        running.await_event("resync.ended")
        yield running


@pytest.fixture
def world(control_plane: ControlPlane, enduring: OperatorProcess, namespace: str, nodes: Nodes) -> Iterator[World]:
    with World(control_plane.api, namespace, nodes) as made:
        yield made


@pytest.fixture
def tenants(world: World, scenario_redis: RedisServer, system_namespace: str) -> Iterator[TenantWorld]:
    with TenantWorld(world.api, scenario_redis, system_namespace, world.suffix, []) as made:
        yield made


@pytest.fixture
def pool(world: World) -> str:
    """A pool with room for two replicas."""
    world.add_nodes("small", 4)
    return world.pool("small", memory="40Gi")


def uids(world: World, name: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods(name)}


@contextmanager
def paused(operator: OperatorProcess) -> Iterator[None]:
    """It does nothing for a block, as on a machine that swaps; connections that break meanwhile it finds broken."""
    os.kill(operator.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(operator.pid, signal.SIGCONT)


# --- the API server --------------------------------------------------------------------------------------------------


def test_an_api_server_that_comes_back_is_followed_again(
    control_plane: ControlPlane, world: World, enduring: OperatorProcess, pool: str
) -> None:
    world.deploy("first", [pool])
    world.wait_ready("first")
    pid, kept, groups = enduring.pid, uids(world, "first"), world.replicas("first")
    control_plane.stop_apiserver()
    control_plane.start_apiserver()
    control_plane.restart_controllers()
    world.deploy("second", [pool])  # at once, before it listens again
    world.patch("first", {"access": {"from": "All"}})
    generation = world.get("first")["metadata"]["generation"]
    world.wait_ready("second", within_s=BACK_S)
    world.wait("the edit is seen", lambda: world.status("first")["observedGeneration"] == generation, within_s=BACK_S)
    assert (enduring.pid, uids(world, "first"), world.replicas("first")) == (pid, kept, groups)
    assert len(world.groups("second")) == 1
    assert enduring.get("/readyz") == (200, "ok\n")


def test_what_was_deleted_while_it_could_not_listen_is_noticed(
    control_plane: ControlPlane,
    world: World,
    enduring: OperatorProcess,
    proxy: ApiProxy,
    tenants: TenantWorld,
    pool: str,
) -> None:
    """A server that restarted knows no history: it calls the old watches expired."""
    world.deploy("goes", [pool])
    world.deploy("stays", [pool])
    world.wait_ready("goes")
    world.wait_ready("stays")
    world.wait("both have names", lambda: tenants.route(world.named("goes")) and tenants.route(world.named("stays")))
    tenants.create("the-only-one", credentials=by_hash(tenants.new_key()))
    world.wait("its key works", lambda: tenants.hashes("the-only-one"))
    [replica] = world.replicas("stays")
    service = kinds.SERVICES.path(world.namespace, replica)
    old, kept, expired = world.api.get(service)["metadata"]["uid"], uids(world, "stays"), proxy.expired_watches
    with paused(enduring):
        control_plane.stop_apiserver()
        control_plane.start_apiserver()
        world.delete("goes")
        world.api.delete(service)
        tenants.delete("the-only-one")
        control_plane.restart_controllers()
    world.wait("its name is free", lambda: tenants.route(world.named("goes")) == {}, within_s=BACK_S)
    world.wait("its key is refused", lambda: tenants.granted("the-only-one") is None, within_s=BACK_S)
    world.wait("another Service", lambda: world.api.get(service)["metadata"]["uid"] != old, within_s=BACK_S)
    assert proxy.expired_watches > expired
    assert uids(world, "stays") == kept
    assert tenants.route(world.named("stays")) == {f"{world.namespace}/stays": 100}


def _writes_of(plural: str) -> Callable[[str, str], bool]:
    return lambda method, path: method in ("PATCH", "PUT", "POST") and f"/{plural}" in path


@pytest.mark.parametrize(
    ("plural", "status", "times", "retry_after_s"),
    [
        ("statefulsets", 409, 2, None),
        ("modeldeployments", 409, 2, None),  # its status
        ("pods", 409, 2, None),  # lifting the gates
        ("statefulsets", 429, 2, 1),
        ("leases", 429, 3, 1),
        ("services", 503, 2, None),
        ("events", 429, 2, 1),
    ],
)
def test_a_refusal_that_passes_is_waited_out(
    world: World, proxy: ApiProxy, pool: str, plural: str, status: int, times: int, retry_after_s: int | None
) -> None:
    refusal = proxy.refuse(_writes_of(plural), status, times=times, retry_after_s=retry_after_s)
    world.deploy("k-exaone", [pool])
    world.wait_ready("k-exaone")
    world.wait("it was refused", lambda: refusal.refused == times)
    assert len(world.groups("k-exaone")) == 1
    assert len(world.pods("k-exaone")) == 2


def test_who_asks_for_patience_gets_it(world: World, proxy: ApiProxy, pool: str) -> None:
    refusal = proxy.refuse(_writes_of("statefulsets"), 429, times=1, retry_after_s=3)
    begun = time.monotonic()
    world.deploy("k-exaone", [pool])
    world.wait("a group", lambda: world.groups("k-exaone"))
    assert refusal.refused == 1
    assert time.monotonic() - begun >= 3


def test_a_kind_that_is_missing_at_the_start_is_named_and_waited_for(
    control_plane: ControlPlane, world: World, enduring: OperatorProcess, pool: str
) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd.TENANT.plural}.{crd.GROUP}"

    def is_gone() -> bool:
        try:
            control_plane.api.get(path)
        except ApiError as error:
            return error.status == 404
        return False

    enduring.end()
    control_plane.api.delete(path)
    try:
        world.wait("the kind is gone", is_gone)
        enduring.start()
        enduring.await_event("resync.kind_missing")
        assert enduring.get("/readyz") == (503, "the API server does not serve Tenant: install the CRDs\n")
        assert enduring.get("/healthz") == (200, "ok\n")
        world.deploy("k-exaone", [pool])
    finally:
        install(control_plane.api)
    enduring.await_event("resync.ended")
    world.wait_ready("k-exaone")
    assert enduring.get("/readyz") == (200, "ok\n")


# --- Redis -----------------------------------------------------------------------------------------------------------


def test_redis_gone_is_said_and_made_good_and_stops_no_worker(
    world: World, tenants: TenantWorld, enduring: OperatorProcess, scenario_redis: RedisServer, pool: str
) -> None:
    lasting, revoked = tenants.new_key(), tenants.new_key()
    world.deploy("k-exaone", [pool], access={"from": "All"})
    model = {"namespace": world.namespace, "name": "k-exaone"}
    tenants.create("acme", credentials=by_hash(lasting, revoked), models=[model])
    world.wait_ready("k-exaone")
    world.wait("both keys work", lambda: tenants.hashes("acme") == digests([lasting, revoked]))
    kept = uids(world, "k-exaone")
    scenario_redis.stop()
    try:
        world.wait("said", lambda: condition(tenants.get("acme"), "Degraded").get("reason") == "StoreUnreachable")
        assert enduring.samples(metrics.OPERATOR_STORE_UP.name) == {"": 0}
        assert enduring.get("/readyz") == (200, "ok\n"), "a pod that is taken out of service helps nobody"
        tenants.patch("acme", credentials=by_hash(lasting))
        world.patch("k-exaone", {"replicas": 2})
        world.wait_ready("k-exaone", 2)
        assert kept <= uids(world, "k-exaone")
    finally:
        scenario_redis.start()
    world.wait(
        "restored, as it is wanted now",
        lambda: tenants.hashes("acme") == digests([lasting]) and tenants.route(world.named("k-exaone")),
        within_s=RESTORED_S,
    )
    world.wait("said", lambda: condition(tenants.get("acme"), "Degraded").get("status") == "False")
    assert enduring.samples(metrics.OPERATOR_STORE_UP.name) == {"": 1}
    assert tenants.models("acme") == [f"{world.namespace}/k-exaone"]


def test_redis_emptied_is_filled_again_and_stops_no_worker(
    world: World, tenants: TenantWorld, scenario_redis: RedisServer, pool: str
) -> None:
    key = tenants.new_key()
    world.deploy("k-exaone", [pool])
    tenants.create("acme", credentials=by_hash(key))
    world.wait_ready("k-exaone")
    world.wait("the key works", lambda: tenants.hashes("acme") == digests([key]))
    [replica] = world.replicas("k-exaone")
    asyncio.run(register(scenario_redis.url, f"{world.namespace}/k-exaone", replica))
    world.patch("k-exaone", {"rollout": {"maxUnavailable": 1}})  # it is looked at, and its worker is alive
    kept = uids(world, "k-exaone")
    with scenario_redis.client() as everything:
        everything.flushall()
    world.wait(
        "restored",
        lambda: tenants.hashes("acme") == digests([key]) and tenants.route(world.named("k-exaone")),
        within_s=RESTORED_S,
    )
    world.patch("k-exaone", {"rollout": {"maxUnavailable": 0}})  # and without a worker that registered
    world.wait_ready("k-exaone")
    assert uids(world, "k-exaone") == kept


async def register(url: str, model: str, replica: str) -> None:
    """As the replica's worker does."""
    redis = connect(access_to(url))
    try:
        await worker(redis, PLATFORM_SECRET.encode(), model=model, replica=replica).write()
    finally:
        await redis.aclose()


# --- the checkpoint, the clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b'{"model_type": "exaone_moe", ', "config.json is not JSON"),
        (b'{"model_type": "exaone_moe"}', "config.json has no num_hidden_layers"),
        (None, "the source has no config.json"),
    ],
    ids=["cut-off", "half", "missing"],
)
def test_a_broken_config_is_explained_and_the_mended_one_read(
    world: World, facts_pods: FactsPods, tmp_path: Path, pool: str, broken: bytes | None, said: str
) -> None:
    config = tmp_path / "config.json"
    if broken is not None:
        config.write_bytes(broken)
    facts_pods.checkpoints["mended-later"] = tmp_path
    world.deploy("k-exaone", [pool], source=claim("mended-later"))
    found = world.wait(
        "said", lambda: said in (each := world.condition("k-exaone", "Degraded")).get("message", "") and each
    )
    assert (found["status"], found["reason"]) == ("True", "ModelUnreadable")
    [pod] = world.api.get(kinds.PODS.path(world.namespace))["items"]
    assert pod["metadata"]["name"] in found["message"], "deleting it is how one asks for another look"
    assert world.groups("k-exaone") == []
    config.write_bytes(CONFIGS["k-exaone"].read_bytes())
    world.api.delete(kinds.PODS.path(world.namespace, pod["metadata"]["name"]))
    world.wait_ready("k-exaone")
    assert world.condition("k-exaone", "Degraded") == {}


def test_a_checkpoint_that_cannot_be_mounted_is_said_at_once_and_read_when_it_can(world: World, pool: str) -> None:
    manifest = world.deployment("k-exaone", [pool])
    world.api.create(kinds.MODEL_DEPLOYMENTS.path(world.namespace), manifest)
    found = world.wait("said", lambda: world.condition("k-exaone", "Degraded"))
    assert (found["status"], found["reason"]) == ("True", "ModelNotRead")
    assert 'persistentvolumeclaim "k-exaone" not found' in found["message"]
    world.claim("k-exaone")
    world.wait_ready("k-exaone")
    assert world.condition("k-exaone", "Degraded") == {}


def claim(name: str) -> dict[str, object]:
    return {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": name}}


@pytest.mark.parametrize("jump_s", [TWO_HOURS_S, -TWO_HOURS_S], ids=["ahead", "back"])
def test_a_clock_that_jumps_stops_nothing_and_new_replicas_start(
    world: World, tenants: TenantWorld, enduring: OperatorProcess, clock: JumpingClock, pool: str, jump_s: int
) -> None:
    passing, lasting = tenants.new_key(), tenants.new_key()
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    first, second = by_hash(passing, lasting)
    tenants.create("acme", credentials=[{**first, "expiresAt": in_an_hour}, second])
    world.deploy("k-exaone", [pool])
    world.wait_ready("k-exaone")
    world.wait("both keys work", lambda: tenants.hashes("acme") == digests([passing, lasting]))
    kept, pid = uids(world, "k-exaone"), enduring.pid
    clock.jump_to(jump_s)
    try:
        world.patch("k-exaone", {"replicas": 2})
        world.wait_ready("k-exaone", 2)
        tenants.patch("acme", suspended=True)
        working = [lasting] if jump_s > 0 else [passing, lasting]
        world.wait("as its clock says", lambda: tenants.hashes("acme") == digests(working))
    finally:
        clock.jump_to(0)
    tenants.patch("acme", suspended=False)
    world.wait("as it should be", lambda: tenants.hashes("acme") == digests([passing, lasting]))
    world.patch("k-exaone", {"rollout": {"maxUnavailable": 1}})
    world.wait_ready("k-exaone", 2)
    assert kept <= uids(world, "k-exaone")
    assert enduring.pid == pid
    assert enduring.samples(metrics.OPERATOR_LEADER.name) == {"": 1}


def test_one_that_lost_its_lease_with_the_api_server_goes_on_after_its_restart(
    control_plane: ControlPlane, world: World, enduring: OperatorProcess, pool: str
) -> None:
    """The last test here, because it leaves an operator that does not outlive an API server."""
    world.deploy("k-exaone", [pool])
    world.wait_ready("k-exaone")
    kept = uids(world, "k-exaone")
    enduring.end()
    enduring.configure(lease=LEASE)
    enduring.start()
    try:
        enduring.await_event("resync.ended")
        control_plane.stop_apiserver()
        try:
            assert enduring.await_end(LEASE["renewDeadlineS"] + 10) == 1
            enduring.start()  # as a kubelet does, which needs no API server
            enduring.await_event("leader.lease_unreachable")
        finally:
            control_plane.start_apiserver()
            control_plane.restart_controllers()
        world.patch("k-exaone", {"replicas": 2})
        enduring.await_event("resync.ended")
        world.wait_ready("k-exaone", 2)
    finally:
        enduring.configure()
    assert kept <= uids(world, "k-exaone")
