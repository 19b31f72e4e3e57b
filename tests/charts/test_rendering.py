"""What the chart renders, as objects: names, labels and selectors fit together, and pods are as this house has them."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hanmaru_testing.chart_values import CASES, EVERYTHING
from hanmaru_testing.helm import CHART, Manifest, render

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
IDENTITY = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component")
WITH_TOKEN = "operator"
"""The only component that speaks to Kubernetes."""


@functools.cache
def rendered(case: str) -> list[Manifest]:
    files, values = CASES[case]
    return render(values, files=files)


def of_kind(case: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in rendered(case) if manifest["kind"] in kinds]


def pod_templates(case: str) -> Iterator[tuple[str, Manifest]]:
    """Each with the component's name."""
    for manifest in of_kind(case, *WORKLOADS):
        template = manifest["spec"]["template"]
        yield template["metadata"]["labels"]["app.kubernetes.io/component"], template
    for service in of_kind(case, "RayService"):
        cluster = service["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["metadata"]["labels"]["app.kubernetes.io/component"], group["template"]
    for pod in of_kind(case, "Pod"):
        yield pod["metadata"]["labels"]["app.kubernetes.io/component"], pod


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_no_two_objects_share_a_name(case: str) -> None:
    names = Counter((m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in rendered(case))
    assert [name for name, count in names.items() if count > 1] == []


@each_case
def test_every_object_is_labelled_and_in_the_releases_namespace(case: str) -> None:
    for manifest in rendered(case):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "hanmaru", manifest["metadata"]["name"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/version"] == "0.1.0"
        assert all(label in labels for label in IDENTITY)
        assert manifest["metadata"].get("namespace", "hanmaru") == "hanmaru"


@each_case
def test_selectors_select_the_pods_of_their_own_component_alone(case: str) -> None:
    pods = {
        name: template["metadata"]["labels"] for name, template in pod_templates(case) if template.get("kind") != "Pod"
    }

    def selected(selector: dict[str, str]) -> list[str]:
        return [name for name, labels in pods.items() if selector.items() <= labels.items()]

    for manifest in of_kind(case, *WORKLOADS, "PodDisruptionBudget"):
        component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == [component]
    for service in of_kind(case, "Service"):
        (component,) = selected(service["spec"]["selector"])
        assert component == service["metadata"]["labels"]["app.kubernetes.io/component"]
        ports = {
            port["name"] for name, t in pod_templates(case) if name == component for c in containers(t)
            for port in c.get("ports", ())
        }  # fmt: skip
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@each_case
def test_pods_of_all_components_are_restricted(case: str) -> None:
    for name, template in pod_templates(case):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is (name == WITH_TOKEN), name
        for container in containers(template):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"]


@each_case
def test_what_runs_for_long_is_probed_and_spread(case: str) -> None:
    for name, template in pod_templates(case):
        if template.get("kind") == "Pod":
            continue
        assert template["spec"]["topologySpreadConstraints"], name
        for container in template["spec"]["containers"]:
            if (case, name) != ("kuberay", "ray-head"):  # KubeRay gives it its own
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), name


@each_case
def test_service_accounts_have_no_token_of_their_own_accord(case: str) -> None:
    accounts = {manifest["metadata"]["name"] for manifest in of_kind(case, "ServiceAccount")}
    assert all(manifest["automountServiceAccountToken"] is False for manifest in of_kind(case, "ServiceAccount"))
    used = {
        template["spec"]["serviceAccountName"]
        for _, template in pod_templates(case)
        if template["spec"].get("serviceAccountName")
    }
    assert used == accounts


@each_case
def test_mounts_and_volumes_fit(case: str) -> None:
    made = {(m["kind"], m["metadata"]["name"]) for m in rendered(case)}
    for name, template in pod_templates(case):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        for container in containers(template):
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes.keys(), name
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if secret := volume.get("secret"):
                assert secret.get("defaultMode", 0o644) & 0o007 == 0, "others may read a secret"
            if projected := volume.get("projected"):
                assert projected["defaultMode"] & 0o007 == 0


@each_case
def test_a_changed_configuration_changes_the_pods(case: str) -> None:
    for name, template in pod_templates(case):
        if any("configMap" in volume for volume in template["spec"].get("volumes", ())):
            marks = template["metadata"].get("annotations", {})
            assert [mark for mark in marks if mark.startswith("checksum/")], name


def test_what_every_component_takes_reaches_every_pod() -> None:
    expected = EVERYTHING["operator"]
    for name, template in pod_templates("everything"):
        if name not in EVERYTHING:
            continue
        spec: dict[str, Any] = template["spec"]
        marks = template["metadata"]
        assert {**expected["labels"], "example.com/owner": "platform"}.items() <= marks["labels"].items()
        assert {**expected["annotations"], "example.com/ticket": "7"}.items() <= marks["annotations"].items()
        for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
            assert spec[field] == expected[field], (name, field)
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert expected["extraVolumes"][0] in spec["volumes"]
        (container,) = spec["containers"]
        assert expected["extraEnv"][0] in container["env"]
        assert expected["extraVolumeMounts"][0] in container["volumeMounts"]
        assert container["imagePullPolicy"] == "IfNotPresent"


def test_a_private_registry_gives_every_image() -> None:
    images = {c["image"] for _, template in pod_templates("everything") for c in containers(template)}
    assert all(image.startswith("registry.example.com/") for image in images), images
    assert "registry.example.com/mirror/library/redis:7.2-bookworm" in images
    assert "registry.example.com/hanmaru/operator:0.1.0" in images


def test_a_digest_pins_an_image() -> None:
    digest = "sha256:" + "0" * 64
    made = render({"operator": {"image": {"digest": digest}}})
    (operator,) = [m for m in made if m["kind"] == "Deployment" and m["metadata"]["name"] == "hanmaru-operator"]
    image = operator["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"ghcr.io/hanmaru/operator:0.1.0@{digest}"


@pytest.mark.parametrize(
    ("release", "values", "full"),
    [
        ("hanmaru", {}, "hanmaru"),
        ("my-hanmaru", {}, "my-hanmaru"),
        ("prod", {}, "prod-hanmaru"),
        ("prod", {"fullnameOverride": "serving"}, "serving"),
        ("prod", {"nameOverride": "llm"}, "prod-llm"),
        ("r" * 53, {}, "r" * 40),
    ],
)
def test_names_come_from_the_release(release: str, values: dict[str, Any], full: str) -> None:
    made = render(values, release=release, namespace="apart")
    operator = next(m for m in made if m["kind"] == "Deployment" and m["metadata"]["name"].endswith("-operator"))
    assert operator["metadata"]["name"] == f"{full}-operator"
    # Two releases of one name in two namespaces must not take each other's rights.
    (role,) = [m["metadata"]["name"] for m in made if m["kind"] == "ClusterRoleBinding"]
    assert role == f"{full}-operator-apart"
    assert all(len(m["metadata"]["name"]) <= 63 for m in made)


def test_an_air_gapped_pool_asks_no_hub() -> None:
    (pool,) = of_kind("everything", "AcceleratorPool")
    assert pool["spec"]["engine"]["env"] == [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    (as_given,) = of_kind("cpu-demo", "AcceleratorPool")
    assert "engine" not in as_given["spec"]


def test_two_renderings_differ_in_generated_secrets_alone() -> None:
    first, second = render(), render()
    differ = [m["kind"] for m, n in zip(first, second, strict=True) if m != n]
    assert set(differ) == {"Secret"}


def test_a_rendering_without_a_cluster_is_the_same_each_time_when_all_secrets_are_given() -> None:
    ray = {"tokenSecret": {"name": "ray-token"}, "redis": {"existingSecret": "ray-redis"}}
    given = {"platform": {"existingSecret": "a"}, "redis": {"existingSecret": "b"}, "gateway": {"ray": ray}}
    made = render(given)
    assert [m for m in made if m["kind"] == "Secret"] == []
    assert made == render(given)


def test_labels_and_annotations_for_prometheus_and_grafana_stand_beside_ours() -> None:
    labelled = {"serviceMonitors": {"enabled": True, "labels": {"release": "prometheus"}},
                "dashboards": {"enabled": True, "annotations": {"folder": "hanmaru"}}}  # fmt: skip
    made = render({"monitoring": labelled, "global": {"annotations": {"example.com/ticket": "7"}}})
    monitors = [m["metadata"] for m in made if m["kind"] == "ServiceMonitor"]
    dashboards = [m["metadata"] for m in made if "grafana_dashboard" in m["metadata"]["labels"]]
    roles = [m["metadata"] for m in made if m["metadata"]["name"] == "hanmaru-view"]
    assert [len(found) for found in (monitors, dashboards, roles)] == [3, 3, 1]
    assert {one["labels"]["release"] for one in monitors} == {"prometheus"}
    assert {one["annotations"]["folder"] for one in dashboards} == {"hanmaru"}
    assert roles[0]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert {one["annotations"]["example.com/ticket"] for one in (*monitors, *dashboards, *roles)} == {"7"}


def test_the_next_version_replaces_the_pods_whose_image_is_ours_and_no_other(tmp_path: Path) -> None:
    """A new chart must not empty Redis, nor end the collector."""
    newer = tmp_path / "hanmaru"
    shutil.copytree(CHART, newer)
    (newer / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text().replace("ersion: 0.1.0", "ersion: 0.2.0"))

    def templates(made: list[Manifest]) -> dict[str, Manifest]:
        return {m["metadata"]["name"]: m["spec"]["template"] for m in made if m["kind"] in WORKLOADS}

    before, after = templates(render()), templates(render(chart=newer))
    changed = {name for name in before if before[name] != after[name]}
    ours = {name for name, t in after.items() if any(":0.2.0" in container["image"] for container in containers(t))}
    assert changed == ours
    assert not any("redis" in name or "collector" in name for name in changed)
