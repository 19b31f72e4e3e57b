"""The kinds as users meet them on the real API server: examples, bounds, defaults, columns, scale and explanations."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_cluster.api import ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.crd.kinds import ACCELERATOR_POOL, API_VERSION, MODEL_DEPLOYMENT, TENANT, Kind
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.crds import shipped
from hanmaru_testing.examples import FOLDER, collection, example, kind_of
from pydantic import ValidationError

pytestmark = pytest.mark.usefixtures("crds")

EXAMPLES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
SMALL = ["pool-small", "deployment-small", "tenant-small"]
DRY = "?dryRun=All&fieldValidation=Strict"
EXPLAIN_DEADLINE_S = 30.0

Edit = dict[str, Any]


def _spec(name: str, edit: Edit) -> dict[str, Any]:
    """An example whose spec has `edit` at dotted paths; None removes."""
    manifest = example(name)
    for path, value in edit.items():
        *way, last = path.split(".")
        at = manifest["spec"]
        for step in way:
            at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
        if value is None:
            at.pop(last, None)
        else:
            at[last] = value
    return manifest


def _is_accepted(plane: ControlPlane, manifest: dict[str, Any]) -> bool:
    try:
        plane.api.create(collection(kind_of(manifest), "default") + DRY, manifest)
    except ApiError as error:
        if error.status not in (400, 422):
            raise
        return False
    return True


def _is_valid(manifest: dict[str, Any]) -> bool:
    try:
        kind_of(manifest).spec.model_validate(manifest["spec"])
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_accepted(name: str, control_plane: ControlPlane) -> None:
    manifest = example(name)
    control_plane.api.create(collection(kind_of(manifest), "default") + DRY, manifest)
    kind_of(manifest).spec.model_validate(manifest["spec"], extra="forbid")


@pytest.mark.parametrize("file", sorted(FOLDER.parent.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_whole_setup_is_accepted(file: Path, control_plane: ControlPlane) -> None:
    ours = [manifest for manifest in yaml.safe_load_all(file.read_text()) if manifest["apiVersion"] == API_VERSION]
    assert ours
    for manifest in ours:
        manifest["metadata"].pop("namespace", None)  # a dry run needs one that is there
        control_plane.api.create(collection(kind_of(manifest), "default") + DRY, manifest)


def _schema(kind: Kind) -> dict[str, Any]:
    crd = next(crd for crd in shipped() if crd["spec"]["names"]["kind"] == kind.name)
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        # A pool's own source and serving are the deployment's again.
        here = {"pools.source": "source", "pools.serving": "serving"}.get(f"{path}{name}", f"{path}{name}")
        yield here
        yield from _fields(field.get("items", field), f"{here}.")


def _given(value: Any, path: str = "") -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        for name, nested in item.items() if isinstance(item, dict) else ():
            here = {"pools.source": "source", "pools.serving": "serving"}.get(f"{path}{name}", f"{path}{name}")
            yield here
            yield from _given(nested, f"{here}.")


@pytest.mark.parametrize("kind", [ACCELERATOR_POOL, MODEL_DEPLOYMENT, TENANT], ids=lambda kind: kind.name)
def test_every_field_stands_in_an_example(kind: Kind) -> None:
    manifests = [example(name) for name in EXAMPLES]
    shown = {path for manifest in manifests if kind_of(manifest) == kind for path in _given(manifest["spec"])}
    assert set(_fields(_schema(kind)["properties"]["spec"])) - shown == set()


# --- bounds: both readers draw the same line -----------------------------------------------------------------------

BOUNDS: list[tuple[str, Edit, bool]] = [
    ("pool-small", {"nodes": None}, False),
    ("pool-small", {"nodes.selectorTerms": []}, False),
    ("pool-small", {"devices.perNode": 0}, False),
    ("pool-small", {"devices.perNode": 1}, True),
    ("pool-small", {"devices.perNode": 65}, False),
    ("pool-small", {"devices.memory": "80 GB"}, False),
    ("pool-small", {"devices.memory": "79.5Gi"}, True),
    ("pool-small", {"devices.type": "DRA"}, False),
    ("pool-small", {"engine.env": [{"name": "A"}, {"name": "B", "value": "1"}]}, True),
    ("pool-small", {"engine.env": [{"name": "A-B"}]}, False),
    ("pool-small", {"engine.type": "vLLM"}, False),
    ("pool-small", {"capabilities.dtypes": []}, False),
    ("pool-small", {"capabilities.features": ["MTP"]}, False),
    ("pool-small", {"scheduling.bindTimeoutSeconds": 4}, False),
    ("pool-small", {"cost": {"perDeviceHour": "2.10"}}, True),
    ("pool-small", {"cost": {"perDeviceHour": "2,10"}}, False),
    ("pool-small", {"cost": {"perDeviceHour": 2.1}}, False),
    ("deployment-small", {"source": None}, False),
    ("deployment-small", {"source.type": "ObjectStore"}, False),
    ("deployment-small", {"source.huggingFace.repo": "one"}, False),
    ("deployment-small", {"source.huggingFace.repo": "a/b/c"}, False),
    ("deployment-small", {"source.huggingFace.repo": "가/b"}, False),
    ("deployment-small", {"source.huggingFace.endpoint": "ftp://x"}, False),
    ("deployment-small", {"licence.accepted": ""}, False),
    ("deployment-small", {"licence.use": "Everyone"}, False),
    ("deployment-small", {"route.name": "K-EXAONE_2.0"}, True),
    ("deployment-small", {"route.name": "a/b"}, False),
    ("deployment-small", {"route.weight": -1}, False),
    ("deployment-small", {"pools": []}, False),
    ("deployment-small", {"pools.0.name": "Upper"}, False),
    ("deployment-small", {"replicas": 0}, True),
    ("deployment-small", {"replicas": 10_001}, False),
    ("deployment-small", {"serving.kvCache.memoryFraction": 0}, False),
    ("deployment-small", {"serving.kvCache.memoryFraction": 0.001}, True),
    ("deployment-small", {"serving.kvCache.memoryFraction": 1}, False),
    ("deployment-small", {"serving.parallelism.tensor": 0}, False),
    ("deployment-small", {"serving.contextTokens": 0}, False),
    ("deployment-small", {"serving.speculative": {"type": "MTP", "mtp": {"draftTokens": 17}}}, False),
    ("deployment-small", {"lifecycle.drainSeconds": 0}, True),
    ("deployment-small", {"lifecycle.startupTimeoutSeconds": 0}, False),
    ("tenant-small", {"credentials.0.apiKey.sha256": "A" * 64}, False),
    ("tenant-small", {"credentials.0.apiKey.sha256": "a" * 63}, False),
    ("tenant-small", {"credentials.0.expiresAt": "2027-01-01T00:00:00Z"}, True),
    ("tenant-small", {"credentials.0.expiresAt": "2027-01-01T00:00:00.5+09:00"}, True),
    ("tenant-small", {"credentials.0.expiresAt": "2027-01-01T00:00:00"}, False),
    ("tenant-small", {"credentials.0.expiresAt": "2027-01-01T00:00:00+25:00"}, False),
    ("tenant-small", {"credentials.0.expiresAt": "0000-01-01T00:00:00Z"}, False),
    ("tenant-small", {"credentials.0.expiresAt": "2027-02-29T00:00:00Z"}, False),
    ("tenant-small", {"credentials.0.expiresAt": "2027-01-01"}, False),
    ("tenant-small", {"limits": [{"requestsPerMinute": 0}]}, False),
    ("tenant-small", {"limits": [{"outputTokensPerMinute": 2**53}]}, True),
    ("tenant-small", {"limits": [{"outputTokensPerMinute": 2**53 + 1}]}, False),
    ("tenant-small", {"scheduling.weight": 0}, False),
    ("tenant-small", {"credentials": [{"name": "a", "apiKey": {"sha256": "0" * 64}}] * 2}, False),
    ("tenant-small", {"limits": [{}, {}]}, False),
]


@pytest.mark.parametrize(("name", "edit", "is_accepted"), BOUNDS, ids=lambda value: str(value)[:60])
def test_the_api_server_and_the_model_draw_the_same_line(
    name: str, edit: Edit, is_accepted: bool, control_plane: ControlPlane
) -> None:
    manifest = _spec(name, edit)
    assert _is_accepted(control_plane, manifest) is is_accepted
    assert _is_valid(manifest) is is_accepted


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("deployment-small", {"pools": [{"name": "a"}, {"name": "a"}]}),
        ("pool-small", {"engine.env": [{"name": "A"}, {"name": "A"}]}),
        ("pool-small", {"capabilities.dtypes": ["fp8", "fp8"]}),
        ("tenant-small", {"models": [{"namespace": "a", "name": "b"}] * 2}),
    ],
)
def test_a_named_thing_stands_once(name: str, edit: Edit, control_plane: ControlPlane) -> None:
    assert not _is_accepted(control_plane, _spec(name, edit))


@pytest.mark.parametrize(
    ("name", "said"),
    [("a" * 45, False), ("a" * 44, True), ("a.b", False)],
)
def test_a_deployments_name_leaves_room_for_those_of_its_replicas(
    name: str, said: bool, control_plane: ControlPlane
) -> None:
    manifest = example("deployment-small")
    manifest["metadata"]["name"] = name
    assert _is_accepted(control_plane, manifest) is said


# --- defaults and unknown fields -----------------------------------------------------------------------------------


def _without_empty(value: Any) -> Any:
    """Absent and `{}` mean the same where anything may stand."""
    if isinstance(value, dict):
        return {name: _without_empty(item) for name, item in value.items() if item != {}}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SMALL)
def test_the_api_servers_defaults_are_the_models(name: str, control_plane: ControlPlane) -> None:
    manifest = example(name)
    kind = kind_of(manifest)
    stored = control_plane.api.create(collection(kind, "default") + DRY, manifest)
    model = kind.spec.model_validate(manifest["spec"])
    expected = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert _without_empty(stored["spec"]) == _without_empty(expected)


def test_an_unknown_field_is_dropped_with_a_warning_and_refused_where_one_asks(
    control_plane: ControlPlane, namespace: str
) -> None:
    manifest = _spec("deployment-small", {"replicaz": 3, "serving.podTemplate": {"spec": {"anything": {"goes": 1}}}})
    path = collection(MODEL_DEPLOYMENT, namespace)
    stored = control_plane.api.create(f"{path}?dryRun=All", manifest)
    assert "replicaz" not in stored["spec"]
    assert stored["spec"]["serving"]["podTemplate"] == {"spec": {"anything": {"goes": 1}}}
    assert _is_valid(manifest)
    with pytest.raises(ApiError, match=r'unknown field "spec\.replicaz"'):
        control_plane.api.create(f"{path}{DRY}", manifest)


# --- what people see -----------------------------------------------------------------------------------------------


@pytest.fixture
def created(control_plane: ControlPlane, namespace: str) -> Iterator[dict[str, str]]:
    """One small object a kind, by example: its path. The pool goes with the test, the others with the namespace."""
    paths = {}
    for name in SMALL:
        manifest = example(name)
        manifest["metadata"]["name"] = f"{manifest['metadata']['name']}-{uuid.uuid4().hex[:6]}"
        path = collection(kind_of(manifest), namespace)
        control_plane.api.create(path, manifest)
        paths[name] = f"{path}/{manifest['metadata']['name']}"
    yield paths
    control_plane.api.delete(paths["pool-small"])


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    now = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}


def _set_status(plane: ControlPlane, path: str, status: dict[str, Any]) -> dict[str, Any]:
    return plane.api.patch(f"{path}/status", {"status": status, "spec": {"replicas": 9, "suspended": True}})


_HEADS = {
    "ap": ["NAME", "ENGINE", "RESOURCE", "NODES", "USED", "ALLOCATABLE", "GROUPS", "WAITING", "AVAILABLE", "AGE"],
    "md": ["NAME", "ROUTE", "DESIRED", "READY", "AVAILABLE", "PROGRESSING", "AGE"],
    "tenants": ["NAME", "AVAILABLE", "REASON", "SUSPENDED", "MODELS", "AGE"],
}


def _rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_kubectl_get_prints_what_a_person_asks_first(
    created: dict[str, str], control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    ready = _condition("Available", "True", "AllReady", "2 of 2 replicas serve")
    moving = _condition("Progressing", "False", "Complete", "")
    _set_status(
        control_plane,
        created["pool-small"],
        {"nodes": 4, "devices": {"total": 32, "allocatable": 31, "used": 16}, "groups": 2, "waitingGroups": 1}
        | {"conditions": [ready]},
    )
    _set_status(control_plane, created["deployment-small"], {"readyReplicas": 1, "conditions": [ready, moving]})
    _set_status(control_plane, created["tenant-small"], {"models": ["k-exaone", "tiny"], "conditions": [ready]})

    pools = _rows(kubectl("get", "ap", created["pool-small"].rpartition("/")[2]))
    assert pools[0] == _HEADS["ap"]
    assert pools[1][1:-1] == ["SGLang", "nvidia.com/gpu", "4", "16", "31", "2", "1", "True"]
    deployments = _rows(kubectl("-n", namespace, "get", "md"))
    assert deployments[0] == _HEADS["md"]
    assert deployments[1][1:-1] == ["k-exaone", "1", "1", "True", "Complete"]
    tenants = _rows(kubectl("-n", namespace, "get", "tenants"))
    assert tenants[0] == _HEADS["tenants"]
    assert tenants[1][1:-1] == ["True", "AllReady", "false", '["k-exaone","tiny"]']
    assert "2 of 2 replicas serve" in kubectl("-n", namespace, "get", "md", "-o", "wide")
    assert len(kubectl("-n", namespace, "get", "hanmaru", "--no-headers").splitlines()) >= 3


@pytest.mark.parametrize("name", SMALL)
def test_a_status_is_written_beside_the_spec(name: str, created: dict[str, str], control_plane: ControlPlane) -> None:
    before = control_plane.api.get(created[name])
    after = _set_status(control_plane, created[name], {"observedGeneration": 1})
    assert after["status"] == {"observedGeneration": 1}
    assert (after["spec"], after["metadata"]["generation"]) == (before["spec"], 1)
    assert control_plane.api.patch(created[name], {"status": {"observedGeneration": 7}})["status"] == after["status"]


def test_kubectl_scales_a_deployment(
    created: dict[str, str], control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    path = created["deployment-small"]
    _set_status(control_plane, path, {"replicas": 1, "selector": "a=b"})
    kubectl("-n", namespace, "scale", "md", path.rpartition("/")[2], "--replicas=3")
    assert control_plane.api.get(path)["spec"]["replicas"] == 3
    scale = control_plane.api.get(f"{path}/scale")
    assert (scale["spec"], scale["status"]) == ({"replicas": 3}, {"replicas": 1, "selector": "a=b"})


def test_kubectl_explains_a_field_by_its_docstring(kubectl: Kubectl) -> None:
    deadline_s = time.monotonic() + EXPLAIN_DEADLINE_S
    while True:
        try:
            said = kubectl("explain", "md.spec.rollout")
        except RuntimeError:  # the API server publishes new kinds' descriptions a little later than the kinds
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        else:
            break
    assert "DESCRIPTION: How replicas are replaced." in " ".join(said.split())
    assert "0 where the model fills the cluster" in " ".join(said.split())
    assert "progressDeadlineSeconds" in said
