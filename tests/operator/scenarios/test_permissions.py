"""The operator as a ServiceAccount with the roles of the chart and no other: it works, and people see that it does.

Watches are kopf's and are not counted in our metrics; one that was refused ends its kopf, which the log says.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_cluster.api import ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts import metrics
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.facts_pods import FactsPods
from hanmaru_testing.operator_process import LEASE, OperatorProcess
from hanmaru_testing.operator_world import World
from hanmaru_testing.otlp_collector import OtlpCollector, ReceivedSpan
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.roles import bind_operator, service_account
from hanmaru_testing.tenant_world import TenantWorld, by_secret, digests

ACCOUNT = "hanmaru-operator"
TAKEOVER_S = LEASE["leaseS"] + 4 * LEASE["retryS"] + 3.0
SPANS_WITHIN_S = 15.0
"""They leave a second later; a busy machine takes its time."""


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as running:
        yield running


@pytest.fixture(scope="module")
def account(control_plane: ControlPlane, system_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the token that a pod of the operator would be given."""
    path = f"/api/v1/namespaces/{system_namespace}/serviceaccounts"
    control_plane.api.create(path, {"metadata": {"name": ACCOUNT}})
    bind_operator(
        control_plane.api,
        service_account(system_namespace, ACCOUNT),
        own_namespace=system_namespace,
        tenant_namespaces=[system_namespace],
    )
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = control_plane.api.create(f"{path}/{ACCOUNT}/token", asked)["status"]["token"]
    config = json.loads(control_plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file = tmp_path_factory.mktemp("account") / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def bound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bound")


@pytest.fixture(scope="module")
def bound(
    operator: OperatorProcess,
    account: Path,
    bound_folder: Path,
    collector: OtlpCollector,
    facts_pods: FactsPods,
    scenario_redis: RedisServer,
    system_namespace: str,
) -> Iterator[OperatorProcess]:
    """An operator as that account, whose spans a collector takes; the shared one rests."""
    with (
        operator.at_rest(),
        OperatorProcess(
            bound_folder,
            kubeconfig=account,
            redis_url=scenario_redis.url,
            namespace=system_namespace,
            name="bound-0",
            environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint},
        ) as running,
    ):
        running.await_event("resync.ended")
        yield running


@pytest.fixture
def world(control_plane: ControlPlane, bound: OperatorProcess, namespace: str, nodes: Nodes) -> Iterator[World]:
    with World(control_plane.api, namespace, nodes) as made:
        yield made


@pytest.fixture
def tenants(world: World, scenario_redis: RedisServer, system_namespace: str) -> Iterator[TenantWorld]:
    with TenantWorld(world.api, scenario_redis, system_namespace, world.suffix, []) as made:
        yield made


def place(world: World) -> str:
    """A deployment over two nodes, ready; its pool."""
    world.add_nodes("small", 2)
    pool = world.pool("small", memory="40Gi")
    world.deploy("k-exaone", [pool], access={"from": "All"})
    world.wait_ready("k-exaone")
    return pool


def test_everything_it_does_is_granted(bound: OperatorProcess, world: World, tenants: TenantWorld) -> None:
    place(world)
    key = tenants.new_key()
    model = {"namespace": world.namespace, "name": "k-exaone"}
    tenants.create("acme", credentials=by_secret(tenants.write_secret("credential", key)), models=[model])
    world.wait("the key works", lambda: tenants.hashes("acme") == digests([key]))
    world.patch("k-exaone", {"serving": {"contextTokens": 65536}, "rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    world.wait_ready("k-exaone")
    world.patch("k-exaone", {"replicas": 0})
    world.wait_ready("k-exaone", 0)
    world.wait("all of it is gone", lambda: not world.pods("k-exaone"))
    codes = bound.samples(metrics.OPERATOR_API_REQUESTS.name)
    assert any('verb="apply"' in labels for labels in codes)
    log = bound.log.read_text()
    # Not by status 403: a namespace that ends, left by another test, answers so too.
    assert "forbidden: User" not in log
    assert "watch.ended" not in log
    assert "orbidden" not in log
    assert "announce.lost" not in log


def test_health_readiness_and_metrics_are_served(bound: OperatorProcess) -> None:
    assert bound.get("/healthz") == (200, "ok\n")
    assert bound.get("/readyz") == (200, "ok\n")
    assert bound.samples(metrics.OPERATOR_LEADER.name) == {"": 1.0}
    assert bound.samples(metrics.OPERATOR_STORE_UP.name) == {"": 1.0}
    assert bound.samples(metrics.OPERATOR_OBJECTS.name)['kind="Namespace"'] >= 5
    assert bound.get("/anything-else")[0] == 404


def test_each_reconcile_is_one_span(
    bound: OperatorProcess, world: World, tenants: TenantWorld, collector: OtlpCollector
) -> None:
    pool = place(world)
    key = tenants.new_key()
    tenants.create("acme", credentials=by_secret(tenants.write_secret("credential", key)))
    world.wait("the key works", lambda: tenants.hashes("acme") == digests([key]))

    def reconciles() -> dict[str, float]:
        found = bound.samples(metrics.OPERATOR_RECONCILES.name)
        return {
            kind: sum(count for labels, count in found.items() if f'kind="{kind}"' in labels)
            for kind in ("ModelDeployment", "AcceleratorPool", "Tenant")
        }

    def spans(kind: str) -> list[ReceivedSpan]:
        return [span for span in collector.spans() if span.name == f"reconcile {kind}"]

    def are_all_there() -> bool:
        return {kind: len(spans(kind)) for kind in reconciles()} == reconciles()

    world.wait("as many spans as reconciles", are_all_there, within_s=SPANS_WITHIN_S)
    ours = [span for span in spans("ModelDeployment") if span.attributes["k8s.namespace.name"] == world.namespace]
    assert {span.attributes["k8s.object.name"] for span in ours} == {"k-exaone"}
    assert {span.attributes["hanmaru.reconcile.result"] for span in ours} <= {"ok", "failed"}
    assert pool in {span.attributes["k8s.object.name"] for span in spans("AcceleratorPool")}
    assert all(span.service == "hanmaru-operator" and not span.parent_id for span in ours)
    assert key not in repr(collector.spans())


def test_kubectl_shows_what_people_ask_first(
    world: World, tenants: TenantWorld, kubectl: Kubectl, system_namespace: str
) -> None:
    pool = place(world)
    model = {"namespace": world.namespace, "name": "k-exaone"}
    tenants.create("acme", credentials=by_secret(tenants.write_secret("credential", tenants.new_key())), models=[model])
    world.wait("granted", lambda: tenants.models("acme"))
    rows = table(kubectl("-n", world.namespace, "get", "md,ap"))
    deployment = rows["modeldeployment.serving.hanmaru.dev/k-exaone"]
    assert deployment.pop("AGE")
    assert deployment == {
        "ROUTE": world.named("k-exaone"),
        "DESIRED": "1",
        "READY": "1",
        "AVAILABLE": "True",
        "PROGRESSING": "RolloutComplete",
    }
    shown = rows[f"acceleratorpool.serving.hanmaru.dev/{pool}"]
    assert shown.pop("AGE")
    assert shown == {
        "ENGINE": "SGLang",
        "RESOURCE": "nvidia.com/gpu",
        "NODES": "2",
        "USED": "16",
        "ALLOCATABLE": "16",
        "GROUPS": "1",
        "WAITING": "0",
        "AVAILABLE": "True",
    }
    tenant = table(kubectl("-n", system_namespace, "get", "tenants"))[tenants.named("acme")]
    assert (tenant["AVAILABLE"], tenant["REASON"], tenant["SUSPENDED"]) == ("True", "Ready", "false")
    assert tenant["MODELS"] == f'["{world.named("k-exaone")}"]'


def test_kubectl_describe_tells_what_happened(
    world: World, tenants: TenantWorld, kubectl: Kubectl, control_plane: ControlPlane
) -> None:
    def events(namespace: str, kind: str, name: str) -> str:
        return kubectl("-n", namespace, "describe", kind, name).partition("Events:")[2]

    pool = place(world)
    world.wait("its story", lambda: "AllReplicasReady" in events(world.namespace, "md", "k-exaone"))
    story = events(world.namespace, "md", "k-exaone")
    assert re.search(rf"Normal +ReplicaCreated .*new in pool {pool}: k-exaone-\w{{5}}", story)
    world.wait("the pool's", lambda: "NodesReady" in events("default", "ap", pool))
    tenants.create("acme", namespace=world.namespace)
    world.wait("a refusal", lambda: "NamespaceNotAllowed" in events(world.namespace, "tenant", tenants.named("acme")))


def test_another_takes_over_from_a_leader_that_is_killed(
    bound: OperatorProcess,
    world: World,
    account: Path,
    bound_folder: Path,
    scenario_redis: RedisServer,
    system_namespace: str,
) -> None:
    place(world)
    [old] = world.replicas("k-exaone")
    kept = {pod["metadata"]["uid"] for pod in world.pods("k-exaone")}
    with OperatorProcess(
        bound_folder, kubeconfig=account, redis_url=scenario_redis.url, namespace=system_namespace, name="bound-1"
    ) as second:
        second.await_event("leader.waiting")
        assert second.get("/readyz") == (200, "ok\n")
        world.add_nodes("small", 2)
        bound.kill()
        try:
            world.patch("k-exaone", {"replicas": 2})
            second.await_event("leader.acquired", within_s=TAKEOVER_S)
            world.wait_ready("k-exaone", 2)
        finally:
            second.end()
            bound.start()
            bound.await_event("resync.ended")
    assert old in world.replicas("k-exaone")
    assert kept <= {pod["metadata"]["uid"] for pod in world.pods("k-exaone")}


def test_a_namespace_goes_all_the_way_when_the_operator_is_gone(
    bound: OperatorProcess, world: World, control_plane: ControlPlane
) -> None:
    place(world)
    bound.end()
    try:
        path = f"/api/v1/namespaces/{world.namespace}"
        control_plane.api.delete(path)

        def is_gone() -> bool:
            try:
                control_plane.api.get(path)
            except ApiError as error:
                return error.status == 404
            return False

        world.wait("the namespace is gone", is_gone, within_s=40)
    finally:
        bound.start()
        bound.await_event("resync.ended")


def table(text: str) -> dict[str, dict[str, str]]:
    """What `kubectl get` printed, by name; the cells by column. Several kinds are several tables."""
    rows: dict[str, dict[str, str]] = {}
    header: list[tuple[str, int]] = []
    for line in text.splitlines():
        if line.startswith("NAME "):
            header = [(each.group(), each.start()) for each in re.finditer(r"\S+", line)]
            continue
        if not line:
            continue
        bounds = [start for _, start in header] + [len(line)]
        cells = [line[start:end].strip() for start, end in itertools.pairwise(bounds)]
        rows[cells[0]] = dict(zip([name for name, _ in header[1:]], cells[1:], strict=True))
    return rows
