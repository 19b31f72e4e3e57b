"""The real API server takes every object as it is, and Pod Security "restricted" every pod."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from hanmaru_cluster.api import ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.chart_values import CASES
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.helm import Manifest, render

UNKNOWN_HERE = ("RayService",)
"""KubeRay's definitions are not to be had as a Go module."""
NAMED_ELSEWHERE = ("serviceAccountName", "imagePullSecrets", "priorityClassName")
"""What a pod's admission would look up, and the dry run did not make."""


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane, crds: None, foreign_kinds: None) -> Iterator[str]:
    name = f"chart-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(name, labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


def rendered(case: str, namespace: str) -> list[Manifest]:
    files, values = CASES[case]
    made = render(values, files=files, namespace=namespace, release=f"hanmaru-{namespace}")
    return [manifest for manifest in made if manifest["kind"] not in UNKNOWN_HERE]


@pytest.mark.parametrize("case", CASES)
def test_the_server_takes_every_object(case: str, restricted: str, kubectl: Kubectl) -> None:
    made = [m for m in rendered(case, restricted) if m["kind"] != "Pod"]
    # Its one cluster-wide name may belong to another test of this run.
    given = "\n---\n".join(json.dumps(m) for m in made)
    said = kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        stdin=given,
    )
    assert said.count("(server dry run)") == len(made)


@pytest.mark.parametrize("case", CASES)
def test_a_restricted_namespace_takes_every_pod(case: str, restricted: str, control_plane: ControlPlane) -> None:
    pods = 0
    for manifest in rendered(case, restricted):
        template = (
            manifest if manifest["kind"] == "Pod" else manifest["spec"].get("template") if "spec" in manifest else None
        )
        if not template or "containers" not in template.get("spec", {}):
            continue
        spec = {field: value for field, value in template["spec"].items() if field not in NAMED_ELSEWHERE}
        pod = {"metadata": {"name": f"pod-{pods}", "labels": template["metadata"]["labels"]}, "spec": spec}
        control_plane.api.create(f"/api/v1/namespaces/{restricted}/pods?dryRun=All", pod)
        pods += 1
    assert pods >= 2


def test_the_namespace_would_refuse_what_is_not_restricted(restricted: str, control_plane: ControlPlane) -> None:
    pod = {"metadata": {"name": "root"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    with pytest.raises(ApiError, match="violates PodSecurity"):
        control_plane.api.create(f"/api/v1/namespaces/{restricted}/pods?dryRun=All", pod)
