"""`hanmaru doctor` on the real API server: broken worlds, healthy ones, and users who may see little."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hanmaru_cli.main import cli
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts.crd.kinds import ACCELERATOR_POOL, MODEL_DEPLOYMENT, TENANT
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.examples import collection, example
from hanmaru_testing.roles import bind, install_people_roles, user

pytestmark = [pytest.mark.usefixtures("crds"), pytest.mark.timeout(180)]

GPU = "nvidia.com/gpu"
SENTINEL = "hmk_never-to-be-shown-1234567890"
Doctor = Callable[..., Result]


@pytest.fixture
def doctor(control_plane: ControlPlane) -> Doctor:
    def run(*arguments: str, kubeconfig: Path | None = None) -> Result:
        login = ["--kubeconfig", str(kubeconfig or control_plane.kubeconfig)]
        return CliRunner().invoke(cli, ["doctor", *login, *arguments])

    return run


def lines(result: Result, about: str) -> list[dict[str, str]]:
    """What `-o json` said of the objects with this in their names; others on the shared cluster do not count."""
    findings: list[dict[str, str]] = json.loads(result.stdout)["findings"]
    return [finding for finding in findings if about in finding["subject"]]


@pytest.fixture
def pool(control_plane: ControlPlane, nodes: Nodes) -> Iterator[str]:
    """A pool over this test's nodes."""
    manifest = example("pool-small")
    name = f"pool-{uuid.uuid4().hex[:8]}"
    ((key, value),) = nodes.selector.items()
    manifest["metadata"] = {"name": name}
    manifest["spec"]["nodes"]["selectorTerms"] = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}
    ]
    path = collection(ACCELERATOR_POOL, "")
    control_plane.api.create(path, manifest)
    yield name
    control_plane.api.delete(f"{path}/{name}")


def test_a_pool_with_a_short_and_a_drained_node_is_told_both(
    pool: str, nodes: Nodes, kubectl: Kubectl, doctor: Doctor
) -> None:
    whole, short = nodes.add(1, capacity={GPU: "8"}) + nodes.add(1, capacity={GPU: "8"}, allocatable={GPU: "7"})
    kubectl("wait", "--for=condition=Ready", f"node/{whole}", f"node/{short}", "--timeout=60s")
    kubectl("cordon", whole)
    said = [finding["seen"] + finding["toDo"] for finding in lines(doctor("-o", "json"), pool)]
    assert any(f"{short} offers 7 of 8" in line for line in said), said
    assert any(f"kubectl uncordon {whole}" in line for line in said), said


def test_a_pool_whose_device_plugin_is_missing_says_so(
    pool: str, nodes: Nodes, kubectl: Kubectl, doctor: Doctor
) -> None:
    (bare,) = nodes.add(1)
    kubectl("wait", "--for=condition=Ready", f"node/{bare}", "--timeout=60s")
    result = doctor("-o", "json")
    assert result.exit_code == 1
    assert [(f["mark"], f["check"]) for f in lines(result, pool) if "device-plugin" in f["toDo"]] == [
        ("fail", "devices")
    ]


def test_a_model_without_its_claim_or_its_pool_and_a_tenant_without_its_secret(
    control_plane: ControlPlane, namespace: str, doctor: Doctor
) -> None:
    model, tenant = example("deployment-claim"), example("tenant-small")
    model["metadata"] = {"name": "m", "namespace": namespace}
    model["spec"]["pools"] = [{"name": "nowhere"}]
    tenant["metadata"] = {"name": f"t-{namespace}", "namespace": namespace}
    ref = {"secretRef": {"name": "absent", "key": "key"}}
    tenant["spec"]["credentials"] = [{"name": "laptop", "apiKey": ref}]
    control_plane.api.create(collection(MODEL_DEPLOYMENT, namespace), model)
    control_plane.api.create(collection(TENANT, namespace), tenant)
    said = {finding["seen"] for finding in lines(doctor("-o", "json"), f"-n {namespace}")}
    assert "it lists the pool nowhere, which is not there" in said
    assert "the operator has seen generation 0 of 1" in said
    assert "credential laptop: there is no Secret absent" in said


def test_no_secret_is_read_though_the_caller_might(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl, doctor: Doctor
) -> None:
    kubectl("create", "secret", "generic", "there", "-n", namespace, f"--from-literal=key={SENTINEL}")
    tenant = example("tenant-small")
    tenant["metadata"] = {"name": f"t-{namespace}", "namespace": namespace}
    ref = {"secretRef": {"name": "there", "key": "key"}}
    tenant["spec"]["credentials"] = [{"name": "laptop", "apiKey": ref}]
    control_plane.api.create(collection(TENANT, namespace), tenant)
    for output in ("text", "json"):
        result = doctor("-o", output)
        assert SENTINEL not in result.output
        assert "no Secret there" not in result.output


def test_pods_that_pod_security_refuses_are_said_with_the_servers_words(
    control_plane: ControlPlane, kubectl: Kubectl, doctor: Doctor
) -> None:
    namespace = f"strict-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(namespace, labels={"pod-security.kubernetes.io/enforce": "restricted"})
    labels = {"app.kubernetes.io/managed-by": "hanmaru", "app.kubernetes.io/component": "worker"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": "x"}]}}
    spec = {"serviceName": "r", "replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    group: dict[str, Any] = {"metadata": {"name": "r", "namespace": namespace, "labels": labels}, "spec": spec}
    control_plane.api.create(f"/apis/apps/v1/namespaces/{namespace}/statefulsets", group)
    kubectl("wait", "-n", namespace, "--for=jsonpath={.reason}=FailedCreate", "event", "--all", "--timeout=60s")
    said = [finding["seen"] for finding in lines(doctor("-o", "json"), f"-n {namespace}")]
    control_plane.api.delete(f"/api/v1/namespaces/{namespace}")
    assert any('Pod Security "restricted:latest" refuses its pods' in line for line in said), said


def test_a_viewer_of_one_namespace_gets_what_may_be_seen_and_no_stack_trace(
    control_plane: ControlPlane, namespace: str, doctor: Doctor
) -> None:
    install_people_roles(control_plane.api)
    bind(control_plane.api, "view", user(f"viewer-{namespace}"), namespace)
    kubeconfig = control_plane.kubeconfig_for(f"viewer-{namespace}")
    result = doctor("-n", namespace, "-o", "json", kubeconfig=kubeconfig)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    seen = {finding["seen"] for finding in json.loads(result.stdout)["findings"] if finding["mark"] == "unseen"}
    assert any("nodes is forbidden" in line for line in seen), seen
    assert f"some lists are of namespace {namespace} alone" in seen


def test_a_server_that_does_not_answer_is_one_line(control_plane: ControlPlane, doctor: Doctor, tmp_path: Path) -> None:
    gone = tmp_path / "kubeconfig"
    gone.write_text(control_plane.kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:1"))
    result = doctor(kubeconfig=gone)
    assert result.exit_code == 1
    assert "no answer from https://127.0.0.1:1" in result.stdout
    assert "Traceback" not in result.output


def test_the_kinds_of_the_chart_are_found_to_be_of_this_version(doctor: Doctor) -> None:
    findings = json.loads(doctor("-o", "json").stdout)["findings"]
    assert [finding["mark"] for finding in findings if finding["check"] == "kinds"] == ["ok"]
