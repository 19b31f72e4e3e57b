"""The operator as a process on the real control plane, with the roles that the chart grants and no other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.crds import install
from hanmaru_testing.operator_process import LEASE, START_S, OperatorProcess
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.roles import bind_operator, user

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TAKEOVER_S = LEASE["leaseS"] + 4 * LEASE["retryS"] + 3.0


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str) -> Path:
    """A kubeconfig of somebody who may do what the chart grants the operator."""
    name = f"operator-{namespace}"
    bind_operator(control_plane.api, user(name), own_namespace=namespace, tenant_namespaces=[namespace])
    return control_plane.kubeconfig_for(name)


@pytest.fixture
def operators(tmp_path: Path, restricted: Path, namespace: str, redis_server: RedisServer) -> Iterator[Any]:
    """Makes operators of one installation, and ends them."""
    made: list[OperatorProcess] = []

    def make(name: str, **environ: str) -> OperatorProcess:
        operator = OperatorProcess(
            tmp_path,
            kubeconfig=restricted,
            redis_url=redis_server.url,
            namespace=namespace,
            name=name,
            environ=environ,
        )
        made.append(operator)
        operator.start()
        return operator

    yield make
    for operator in made:
        operator.__exit__(None, None, None)


def lease(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/hanmaru-operator"
    return dict(plane.api.get(path)["spec"])


def await_ready(operator: OperatorProcess) -> None:
    deadline = time.monotonic() + START_S
    while (answer := operator.get("/readyz"))[0] != 200:
        assert time.monotonic() < deadline, f"{answer}\n{operator.tail()}"
        time.sleep(0.1)


@pytest.mark.usefixtures("crds")
def test_one_leads_with_the_charts_roles_and_gives_the_lease_back(
    control_plane: ControlPlane, namespace: str, operators: Any
) -> None:
    first = operators("operator-0")
    first.await_event("resync.ended")
    second = operators("operator-1")
    second.await_event("leader.waiting")
    for operator in (first, second):
        assert operator.get("/healthz") == (200, "ok\n")
        await_ready(operator)
    metrics = first.get("/metrics")[1]
    assert "hanmaru_operator_leader 1.0" in metrics
    assert 'hanmaru_operator_objects{kind="Namespace"}' in metrics
    # Not by status 403: a namespace that ends, left by another test, answers so too.
    assert "forbidden: User" not in first.log.read_text()
    assert "hanmaru_operator_leader 0.0" in second.get("/metrics")[1]
    assert first.stop() == 0
    begun = time.monotonic()
    second.await_event("leader.acquired")
    assert time.monotonic() - begun < LEASE["leaseS"]
    assert lease(control_plane, namespace)["holderIdentity"].startswith("operator-1_")
    second.await_event("resync.ended")
    assert "watch.ended" not in first.log.read_text() + second.log.read_text()


DEAD_COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize(
    ("moment", "environ"),
    [
        ("operator.serving", {}),
        ("leader.acquired", {}),
        ("resync.ended", {}),
        ("leader.acquired", DEAD_COLLECTOR),
        ("resync.ended", DEAD_COLLECTOR),
    ],
)
def test_it_ends_well_whenever_it_is_asked_to(operators: Any, moment: str, environ: dict[str, str]) -> None:
    """Kopfs and exporters in threads that did not end yet are no reason to crash."""
    operator = operators("operator-0", **environ)
    operator.await_event(moment)
    assert operator.stop() == 0, operator.tail()


@pytest.mark.usefixtures("crds")
def test_a_leader_that_is_killed_is_followed(operators: Any) -> None:
    first = operators("operator-0")
    first.await_event("leader.acquired")
    second = operators("operator-1")
    second.await_event("leader.waiting")
    first.kill()
    second.await_event("leader.acquired", within_s=TAKEOVER_S)


@pytest.mark.usefixtures("crds")
def test_a_leader_without_its_lease_ends(control_plane: ControlPlane, namespace: str, operators: Any) -> None:
    first = operators("operator-0")
    first.await_event("resync.ended")
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/hanmaru-operator"
    control_plane.api.patch(path, {"spec": {"holderIdentity": "somebody-else"}})
    first.await_event("operator.failed", within_s=TAKEOVER_S)
    assert first._process.wait(10) == 1


def test_missing_crds_are_waited_for(control_plane: ControlPlane, operators: Any) -> None:
    install(control_plane.api)
    try:
        for crd in control_plane.api.get(CRDS)["items"]:
            control_plane.api.delete(f"{CRDS}/{crd['metadata']['name']}")
        operator = operators("operator-0")
        operator.await_event("resync.kind_missing")
        status, words = operator.get("/readyz")
        assert status == 503
        assert "install the CRDs" in words
        assert operator.get("/healthz")[0] == 200
    finally:
        install(control_plane.api)
    operator.await_event("resync.ended", within_s=60)
    await_ready(operator)
