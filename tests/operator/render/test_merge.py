from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.render.merge import NOT_FOR_AUTHORS, for_author, merge, merge_template
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": 1, "b": {"x": 1}}, {"b": None}, {"a": 1}),
        ({}, {"a": {"x": None, "y": 1}}, {"a": {"y": 1}}),
        ({"command": ["a", "b"]}, {"command": ["c"]}, {"command": ["c"]}),
        (
            {"containers": [{"name": "x", "image": "1", "tty": True}, {"name": "y"}]},
            {"containers": [{"name": "z"}, {"name": "x", "image": "2"}]},
            {"containers": [{"name": "x", "image": "2", "tty": True}, {"name": "y"}, {"name": "z"}]},
        ),
        (
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
        ),
        (
            {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]},
            {"volumes": [{"name": "shm", "hostPath": {"path": "/dev/shm"}}]},
            {"volumes": [{"name": "shm", "hostPath": {"path": "/dev/shm"}}]},
        ),
        (
            {"volumeMounts": [{"mountPath": "/a", "name": "a"}]},
            {"volumeMounts": [{"mountPath": "/a", "readOnly": True}, {"mountPath": "/b", "name": "b"}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "a", "readOnly": True}, {"mountPath": "/b", "name": "b"}]},
        ),
        (
            {"tolerations": [{"key": "a"}]},
            {"tolerations": [{"key": "b"}, {"key": "a"}]},
            {"tolerations": [{"key": "a"}, {"key": "b"}]},
        ),
        ({"capabilities": {"drop": ["ALL"]}}, {"capabilities": {"add": ["IPC_LOCK"]}}, None),
    ],
)
def test_merging(base: Any, over: Any, merged: Any) -> None:
    merged = merged or {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
    before = repr((base, over))
    assert merge(base, over) == merged
    assert repr((base, over)) == before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"spec": []}, "podTemplate.spec is a list, not an object"),
        ({"spec": {"containers": "engine"}}, "podTemplate.spec.containers is a str, not a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "no 'name'"),
        ({"spec": {"containers": ["engine"]}}, "no 'name'"),
        ({"spec": {"containers": [{"name": "engine", "env": {}}]}}, r"podTemplate.spec.containers\[\].env is a dict"),
        ({"metadata": {"labels": []}}, "podTemplate.metadata.labels is a list"),
    ],
)
def test_what_is_broken_is_named(template: dict[str, Any], message: str) -> None:
    base = {"metadata": {}, "spec": {"containers": [{"name": "engine", "env": []}]}}
    with pytest.raises(HanmaruError, match=message) as refused:
        merge_template(base, template)
    assert refused.value.code is ErrorCode.CONFIGURATION


def test_an_author_cannot_take_another_identity_or_place_or_leave_the_container() -> None:
    template = {
        "metadata": {
            "labels": {"a": "b", names.LABEL_SOURCE: "x"},
            "annotations": {names.ANNOTATION_PLANNED_NODE: "n", "example.com/owner": "me"},
        },
        "spec": dict.fromkeys(NOT_FOR_AUTHORS, "x")
        | {
            "nodeSelector": {"disk": "fast"},
            "affinity": {"nodeAffinity": {}, "podAffinity": {"x": 1}},
            "volumes": [{"name": "host", "hostPath": {"path": "/"}}, {"name": "own", "emptyDir": {}}],
            "containers": [
                {"name": "engine", "image": "evil", "command": ["x"], "args": [], "resources": {"x": 1}},
                {
                    "name": "sidecar",
                    "image": "fine",
                    "securityContext": {"privileged": True},
                    "ports": [{"containerPort": 1, "hostPort": 22}, {"containerPort": 2}],
                },
            ],
        },
    }
    kept, refused = for_author(template)
    assert kept == {
        "metadata": {"labels": {"a": "b"}, "annotations": {"example.com/owner": "me"}},
        "spec": {
            "nodeSelector": {"disk": "fast"},
            "affinity": {"podAffinity": {"x": 1}},
            "volumes": [{"name": "own", "emptyDir": {}}],
            "containers": [
                {"name": "engine", "resources": {"x": 1}},
                {"name": "sidecar", "image": "fine", "ports": [{"containerPort": 2}]},
            ],
        },
    }
    assert set(refused) == {f"spec.{name}" for name in NOT_FOR_AUTHORS} | {
        f"metadata.labels[{names.LABEL_SOURCE}]",
        f"metadata.annotations[{names.ANNOTATION_PLANNED_NODE}]",
        "spec.affinity.nodeAffinity",
        "spec.volumes[host].hostPath",
        "spec.containers[engine].image",
        "spec.containers[engine].command",
        "spec.containers[engine].args",
        "spec.containers[sidecar].securityContext",
        "spec.containers[sidecar].ports[1].hostPort",
    }


def test_a_harmless_template_passes_unchanged() -> None:
    template = {"spec": {"containers": [{"name": "engine", "resources": {"requests": {"memory": "64Gi"}}}]}}
    assert for_author(template) == (template, ())


_words = st.sampled_from([
    "metadata", "spec", "labels", "containers", "initContainers", "name", "env", "volumes", "volumeMounts", "mountPath",
    "ports", "tolerations", "affinity", "nodeAffinity", "hostPath", "engine", "securityContext", "schedulingGates",
    "imagePullSecrets", "model", "tmp", "resources",
])  # fmt: skip
templates = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 3), _words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_words, inner, max_size=4)),
    max_leaves=20,
)


@given(template=st.dictionaries(_words, templates, max_size=3), base=st.dictionaries(_words, templates, max_size=3))
def test_no_template_breaks_the_merge(template: dict[str, Any], base: dict[str, Any]) -> None:
    sound = {"metadata": {}, "spec": {"containers": [{"name": "engine"}]}}
    with suppress(HanmaruError):
        merged = merge_template(merge_template(sound, base), for_author(template)[0])
        assert merge_template(merged, {}) == merged
