"""Releases on the real API server: what is made once stays over upgrades, and what is left when a release goes.

Nodes and pods are API objects (kwok), so nothing of ours runs: what programs do is shown in `tests/e2e`.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hanmaru_cluster.api import ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.crd.kinds import GROUP, KINDS, VERSION
from hanmaru_testing.crds import shipped
from hanmaru_testing.helm import CHART, CRDS_CHART, EXAMPLES, HelmError, Releases

DEADLINE_S = 30.0
# ClusterRoles for people have one name in a cluster, and other tests make them too.
VALUES: dict[str, Any] = {"rbac": {"people": False}}
MADE_BY_KUBERNETES = {"kube-root-ca.crt", "default"}
KEPT = {"secrets/hanmaru-platform"}


@pytest.fixture
def installed(control_plane: ControlPlane, releases: Releases) -> Iterator[str]:
    """A release `hanmaru` with the CPU demo, in a namespace of this test; gone afterwards."""
    namespace = f"release-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(namespace)
    releases.run(
        *("install", "hanmaru", str(CHART), "--namespace", namespace, "--values", str(EXAMPLES / "cpu-demo.yaml")),
        values=VALUES,
    )
    yield namespace
    try:
        releases.run("uninstall", "hanmaru", "--namespace", namespace)
    except HelmError as error:
        if "not found" not in str(error):
            raise
    control_plane.api.delete(f"/api/v1/namespaces/{namespace}")


def secret(plane: ControlPlane, namespace: str, name: str) -> dict[str, str]:
    found = plane.api.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]
    return {key: base64.b64decode(value).decode() for key, value in found.items()}


def left(plane: ControlPlane, namespace: str) -> set[str]:
    """Whatever is in a namespace and was not made by Kubernetes, as plural/name."""
    found = set()
    paths = ["/api/v1", "/apis/apps/v1", "/apis/policy/v1", "/apis/networking.k8s.io/v1"]
    paths += ["/apis/rbac.authorization.k8s.io/v1", "/apis/coordination.k8s.io/v1", f"/apis/{GROUP}/{VERSION}"]
    for path in paths:
        for kind in plane.api.get(path)["resources"]:
            if not kind["namespaced"] or "list" not in kind["verbs"] or kind["name"] == "events":
                continue
            for item in plane.api.get(f"{path}/namespaces/{namespace}/{kind['name']}")["items"]:
                found.add(f"{kind['name']}/{item['metadata']['name']}")
    return {name for name in found if name.partition("/")[2] not in MADE_BY_KUBERNETES}


def test_an_upgrade_keeps_what_was_made_once(installed: str, control_plane: ControlPlane, releases: Releases) -> None:
    before = {name: secret(control_plane, installed, name) for name in ("hanmaru-platform", "hanmaru-redis")}
    assert len(before["hanmaru-platform"]["secret"]) == 64
    assert len(set(before["hanmaru-redis"].values())) == 3
    changed = VALUES | {"operator": {"replicas": 2, "settings": {"workers": 4}}}
    arguments = ("upgrade", "hanmaru", str(CHART), "--namespace", installed, "--reuse-values")
    releases.run(*arguments, values=changed)
    after = {name: secret(control_plane, installed, name) for name in before}
    assert after == before
    deployment = control_plane.api.get(f"/apis/apps/v1/namespaces/{installed}/deployments/hanmaru-operator")
    assert deployment["spec"]["replicas"] == 2
    releases.run("rollback", "hanmaru", "1", "--namespace", installed)
    assert {name: secret(control_plane, installed, name) for name in before} == before
    deployment = control_plane.api.get(f"/apis/apps/v1/namespaces/{installed}/deployments/hanmaru-operator")
    assert deployment["spec"]["replicas"] == 1


def test_an_upgrade_that_changes_nothing_restarts_nothing(
    installed: str, control_plane: ControlPlane, releases: Releases
) -> None:
    path = f"/apis/apps/v1/namespaces/{installed}/deployments"

    def generations() -> dict[str, int]:
        return {
            item["metadata"]["name"]: item["metadata"]["generation"] for item in control_plane.api.get(path)["items"]
        }

    before = generations()
    releases.run("upgrade", "hanmaru", str(CHART), "--namespace", installed, "--reuse-values")
    assert generations() == before


def test_a_settings_change_restarts_the_operator_alone(
    installed: str, control_plane: ControlPlane, releases: Releases
) -> None:
    path = f"/apis/apps/v1/namespaces/{installed}/deployments"

    def templates() -> dict[str, Any]:
        return {item["metadata"]["name"]: item["spec"]["template"] for item in control_plane.api.get(path)["items"]}

    before = templates()
    arguments = ("upgrade", "hanmaru", str(CHART), "--namespace", installed, "--reuse-values")
    releases.run(*arguments, values={"operator": {"settings": {"workers": 5}}})
    after = templates()
    assert [name for name in before if before[name] != after[name]] == ["hanmaru-operator"]


def test_uninstalling_leaves_the_platform_secret_alone(
    installed: str, control_plane: ControlPlane, releases: Releases
) -> None:
    kept = secret(control_plane, installed, "hanmaru-platform")
    assert f"{KINDS[1].plural}/tiny-k-exaone" in left(control_plane, installed)
    releases.run("uninstall", "hanmaru", "--namespace", installed)
    deadline_s = time.monotonic() + DEADLINE_S
    while (found := left(control_plane, installed)) != KEPT:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.2)
    # A new release of the same name goes on with it: the workers' keys stay the same.
    releases.run("install", "hanmaru", str(CHART), "--namespace", installed, values=VALUES)
    assert secret(control_plane, installed, "hanmaru-platform") == kept


def test_nothing_of_the_cluster_is_left_either(installed: str, control_plane: ControlPlane, releases: Releases) -> None:
    held = [m for m in releases.manifests("hanmaru", installed) if "namespace" not in m["metadata"]]
    assert {m["kind"] for m in held} >= {"ClusterRole", "ClusterRoleBinding", "AcceleratorPool"}
    paths = [f"/apis/{m['apiVersion']}/{m['kind'].lower()}s/{m['metadata']['name']}" for m in held]
    for path in paths:
        control_plane.api.get(path)
    releases.run("uninstall", "hanmaru", "--namespace", installed)
    for path in paths:
        with pytest.raises(ApiError) as gone:
            control_plane.api.get(path)
        assert gone.value.status == 404, path


def test_what_helm_says_after_an_installation_names_the_services_port(releases: Releases) -> None:
    arguments = ("install", "said", str(CHART), "--namespace", "default", "--dry-run=server")
    said = releases.run(*arguments, values=VALUES | {"gateway": {"service": {"httpPort": 80}}})
    assert "kubectl port-forward --namespace default service/said-hanmaru-gateway 8000:80\n" in said


def test_a_cluster_without_the_kinds_is_told_what_to_run_first(releases: Releases) -> None:
    arguments = ("template", "x", str(CHART), "--kube-version", "1.36.0")
    with pytest.raises(HelmError, match="helm install hanmaru-crds charts/hanmaru-crds"):
        releases.run(*arguments)


def test_the_kinds_stay_when_their_chart_goes(control_plane: ControlPlane, releases: Releases, namespace: str) -> None:
    arguments = (str(CRDS_CHART), "--namespace", namespace)
    releases.run("upgrade", "--install", "hanmaru-crds", *arguments, "--take-ownership")
    releases.run("uninstall", "hanmaru-crds", "--namespace", namespace)
    for crd in shipped():
        control_plane.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}")
        plural = crd["spec"]["names"]["plural"]
        assert "items" in control_plane.api.get(f"/apis/{GROUP}/{VERSION}/{plural}")
