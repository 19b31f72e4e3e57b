"""Every CEL rule lets pass what it should and refuses the rest with its message, on the real API server.

The rules are found by walking the shipped CRDs, so one without a case fails `test_every_rule_has_a_case`. A rule that
stands in several places is tried in each of them: its case is planted into the example that has every field.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.crds import shipped
from hanmaru_testing.examples import collection, example, kind_of

Path = tuple[str, ...]
ITEM = "[]"
FULL = {
    "AcceleratorPool": "pool-full",
    "ModelDeployment": "deployment-full",
    "Tenant": "tenant-full",
}


@dataclass(frozen=True)
class Place:
    """One rule where it stands."""

    kind: str
    path: Path
    rule: str
    message: str

    @property
    def is_transition(self) -> bool:
        return "oldSelf" in self.rule

    def __str__(self) -> str:
        return f"{self.kind}:{'.'.join(self.path)}:{self.message[:30]}"


@dataclass(frozen=True)
class Case:
    """Values for a rule. They are merged (None deletes) into what the example has at `path`, or `up` steps above it."""

    path: str
    """The end of the rule's place."""
    says: str
    """Part of the rule's message."""
    good: tuple[Any, ...]
    bad: tuple[Any, ...]
    up: int = 0

    def speaks_of(self, place: Place) -> bool:
        return f".{'.'.join(place.path)}".endswith(f".{self.path}") and self.says in place.message


def _repo(**more: Any) -> dict[str, Any]:
    return {"type": "HuggingFace", "huggingFace": {"repo": "a/b"}, "image": None, "persistentVolumeClaim": None} | more


def _claim(path: str) -> dict[str, Any]:
    claim = {"claimName": "c", "path": path}
    return {"type": "PersistentVolumeClaim", "huggingFace": None, "image": None, "persistentVolumeClaim": claim}


def _image(path: str) -> dict[str, Any]:
    image = {"reference": "i", "path": path}
    return {"type": "Image", "huggingFace": None, "persistentVolumeClaim": None, "image": image}


def _requirement(operator: str, *values: str) -> dict[str, Any]:
    return {"key": "k", "operator": operator, "values": list(values)}


CASES = [
    # --- pools
    Case(
        "devices",
        "give the block that belongs to `type`",
        good=({"type": "Resource", "resource": {"name": "cpu"}},),
        bad=({"resource": None},),
    ),
    Case(
        "devices",
        "resource.name cannot be changed",
        good=({"memory": "1Gi", "perNode": 4},),
        bad=({"resource": {"name": "furiosa.ai/rngd"}},),
    ),
    Case("engine.type", "cannot be changed", up=1, good=({"image": "new"},), bad=({"type": "FuriosaLLM"},)),
    Case(
        "spec",
        "no speculative decoding",
        good=(
            {"engine": {"type": "FuriosaLLM"}, "capabilities": {"features": ["hybrid-kv"]}},
            {"engine": {"type": "SGLang"}, "capabilities": {"features": ["mtp"]}},
        ),
        bad=({"engine": {"type": "FuriosaLLM"}, "capabilities": {"features": ["a", "mtp"]}},),
    ),
    Case(
        "allowedNamespaces",
        "give `selector` exactly when",
        good=(
            {"from": "Selector", "selector": {}},
            {"from": "None", "selector": None},
            {"from": None, "selector": None},
        ),
        bad=({"from": "All", "selector": {}}, {"from": "Selector", "selector": None}),
    ),
    Case(
        "tolerations.[]",
        "Exists takes no",
        good=({"key": "k", "operator": "Exists", "value": None}, {"key": "k", "operator": "Equal", "value": "v"}),
        bad=({"key": "k", "operator": "Exists", "value": "v"},),
    ),
    Case(
        "tolerations.[]",
        "Equal needs a `key`",
        good=({"key": None, "operator": "Exists"}, {"key": "k", "operator": None}),
        bad=({"key": None, "operator": None}, {"key": "", "operator": "Equal"}),
    ),
    Case(
        "tolerations.[]",
        "`tolerationSeconds` belongs",
        good=({"effect": "NoExecute", "tolerationSeconds": 0}, {"effect": None, "tolerationSeconds": None}),
        bad=({"effect": "NoSchedule", "tolerationSeconds": 1}, {"effect": None, "tolerationSeconds": 1}),
    ),
    # --- selectors
    Case(
        "selector",
        "compare labels of nodes only",
        good=({"matchExpressions": [_requirement("Exists")]}, {"matchExpressions": None}),
        bad=(
            {"matchExpressions": [_requirement("Gt", "1")]},
            {"matchExpressions": [_requirement("Exists"), _requirement("Lt", "1")]},
        ),
    ),
    Case(
        "matchExpressions.[]",
        "In and NotIn need values",
        good=(
            _requirement("In", "a", "b"),
            _requirement("NotIn", "a"),
            _requirement("Exists"),
            {"key": "k", "operator": "DoesNotExist", "values": None},
        ),
        bad=(
            _requirement("In"),
            {"key": "k", "operator": "NotIn", "values": None},
            _requirement("Exists", "a"),
            _requirement("DoesNotExist", "a"),
            _requirement("Gt"),
            _requirement("Lt", "1", "2"),
        ),
    ),
    # --- deployments
    Case(
        "source",
        "give the block that belongs to `type`",
        good=(_repo(), _claim(""), _image("")),
        bad=(
            _repo(image={"reference": "i"}),
            _repo(huggingFace=None),
            _repo(type="Image"),
            _claim("") | {"type": "Image"},
        ),
    ),
    Case(
        "source.persistentVolumeClaim.path",
        "must stay inside",
        up=2,
        good=(_claim("a/.b/c."),),
        bad=(_claim(".."), _claim("a/../b")),
    ),
    Case("source.image.path", "must stay inside", up=2, good=(_image("a/.b/c."),), bad=(_image("a/.."),)),
    Case("route.name", "cannot be changed", up=1, good=({"weight": 5},), bad=({"name": "other"},)),
    Case(
        "access",
        "give `selector` exactly when",
        good=(
            {"from": "Selector", "selector": {}},
            {"from": "All", "selector": None},
            {"from": None, "selector": None},
        ),
        bad=({"from": "Same", "selector": {}}, {"from": "Selector", "selector": None}),
    ),
    Case(
        "parallelism",
        "expert must divide tensor",
        good=({"tensor": 8, "expert": 4}, {"tensor": None, "expert": 3}, {"tensor": 5, "expert": None}),
        bad=({"tensor": 8, "expert": 3}, {"tensor": 4, "expert": 8}),
    ),
    Case(
        "speculative",
        "give the block that belongs to `type`",
        good=({"type": "MTP", "mtp": {}}, {"type": "None", "mtp": None}),
        bad=({"type": "MTP", "mtp": None}, {"type": "None", "mtp": {}}),
    ),
    Case(
        "pools.[]",
        "minReplicas must not be above",
        good=({"minReplicas": 2, "maxReplicas": 2}, {"minReplicas": 9, "maxReplicas": None}),
        bad=({"minReplicas": 3, "maxReplicas": 2}, {"minReplicas": 1, "maxReplicas": 0}),
    ),
    Case(
        "rollout",
        "cannot both be 0",
        good=({"maxSurge": 0, "maxUnavailable": 1}, {"maxSurge": 1, "maxUnavailable": 0}, {"maxUnavailable": None}),
        bad=({"maxSurge": 0, "maxUnavailable": 0},),
    ),
    # --- tenants
    Case(
        "apiKey",
        "exactly one of",
        good=(
            {"sha256": "0" * 64, "secretRef": None},
            {"sha256": None, "secretRef": {"name": "s", "key": "k"}},
        ),
        bad=(
            {"sha256": None, "secretRef": None},
            {"sha256": "0" * 64, "secretRef": {"name": "s", "key": "k"}},
        ),
    ),
    Case(
        "isolation",
        "give `shared` exactly when",
        good=({"type": "Own", "shared": None}, {"type": "Shared", "shared": {"name": "s"}}),
        bad=({"type": "Own", "shared": {"name": "s"}}, {"type": "Shared", "shared": None}),
    ),
]


def _places(kind: str, schema: dict[str, Any], path: Path = ()) -> Iterator[Place]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield Place(kind, path, rule["rule"], rule["message"])
    for name, field in schema.get("properties", {}).items():
        yield from _places(kind, field, (*path, name))
    for nested in ("items", "additionalProperties"):
        if nested in schema:
            yield from _places(kind, schema[nested], (*path, ITEM))


PLACES = [
    place
    for crd in shipped()
    for version in crd["spec"]["versions"]
    for place in _places(crd["spec"]["names"]["kind"], version["schema"]["openAPIV3Schema"])
]


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    both = {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
    return {name: value for name, value in both.items() if value is not None}


def _planted(into: Any, path: Path, value: Any) -> Any:
    """`into` with `value` merged at `path`; what is missing on the way is made."""
    if not path:
        return _merged({} if into is None else into, value)
    step, rest = path[0], path[1:]
    if step == ITEM:
        first, *others = into or [None]
        return [_planted(first, rest, value), *others]
    into = into or {}
    return {**into, step: _planted(into.get(step), rest, value)}


def _case(place: Place) -> Case:
    return next(case for case in CASES if case.speaks_of(place))


def _object(place: Place, value: Any) -> dict[str, Any]:
    path = place.path[: len(place.path) - _case(place).up]
    made: dict[str, Any] = _planted(example(FULL[place.kind]), path, value)
    return made


def _create(api: ApiClient, manifest: dict[str, Any], query: str = "") -> None:
    api.create(collection(kind_of(manifest), "default") + query, manifest)


def test_every_rule_has_a_case() -> None:
    assert [str(place) for place in PLACES if not any(case.speaks_of(place) for case in CASES)] == []


def test_every_case_has_a_rule() -> None:
    assert [case for case in CASES if not any(case.speaks_of(place) for place in PLACES)] == []


@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize("place", [p for p in PLACES if not p.is_transition], ids=str)
def test_a_rule_lets_pass_what_it_should_and_refuses_the_rest(place: Place, control_plane: ControlPlane) -> None:
    for value in _case(place).good:
        manifest = _object(place, value)
        _create(control_plane.api, manifest, "?dryRun=All")
        kind_of(manifest).spec.model_validate(manifest["spec"], extra="forbid")
    for value in _case(place).bad:
        with pytest.raises(ApiError) as refused:
            _create(control_plane.api, _object(place, value), "?dryRun=All")
        assert refused.value.status == 422
        assert place.message in str(refused.value), value


@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize("place", [p for p in PLACES if p.is_transition], ids=str)
def test_what_must_not_change_cannot(place: Place, control_plane: ControlPlane) -> None:
    manifest = example(FULL[place.kind])
    manifest["metadata"]["name"] = f"t-{uuid.uuid4().hex[:8]}"
    path = f"{collection(kind_of(manifest), 'default')}/{manifest['metadata']['name']}"
    _create(control_plane.api, manifest)
    try:
        for value in _case(place).good:
            changed = {"spec": _object(place, value)["spec"]}
            assert control_plane.api.patch(f"{path}?dryRun=All", changed)["metadata"]["generation"] == 2
        for value in _case(place).bad:
            with pytest.raises(ApiError) as refused:
                control_plane.api.patch(f"{path}?dryRun=All", {"spec": _object(place, value)["spec"]})
            assert refused.value.status == 422
            assert place.message in str(refused.value), value
    finally:
        control_plane.api.delete(path)
