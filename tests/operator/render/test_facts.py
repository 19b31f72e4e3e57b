from __future__ import annotations

import json

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.model_deployment import Source
from hanmaru_operator.render.facts import facts_config_map, model_facts_pod
from hanmaru_operator.render.revision import source_hash
from hanmaru_testing.rendered import CLAIM, HUB, IMAGE, OWNER, SETTINGS


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (CLAIM, ["--checkpoint=/model/tiny"]),
        (IMAGE, ["--checkpoint=/model/model"]),
        (
            HUB,
            [
                "--repo=LGAI-EXAONE/K-EXAONE-236B-A23B",
                "--revision=main",
                "--endpoint=https://huggingface.co",
                "--token-file=/hanmaru/hub/token",
            ],
        ),
    ],
    ids=["claim", "image", "hub"],
)
def test_the_pod_reads_the_source_where_the_workers_will(source: dict[str, object], arguments: list[str]) -> None:
    pod = model_facts_pod(OWNER, Source.model_validate(source), "k-exaone-facts-1", SETTINGS)
    (reader,) = pod["spec"]["containers"]
    assert reader["command"] == ["hanmaru", "model-facts", *arguments, "--out=/dev/termination-log"]
    assert reader["image"] == "example.com/operator:1"
    assert pod["metadata"]["labels"][names.LABEL_SOURCE] == source_hash(Source.model_validate(source))
    assert pod["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_MODEL_FACTS


def test_the_pod_is_restricted_and_ends() -> None:
    spec = model_facts_pod(OWNER, Source.model_validate(IMAGE), "x", SETTINGS)["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["automountServiceAccountToken"] is False
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    (reader,) = spec["containers"]
    assert reader["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(mount.get("readOnly") or mount["name"] == "tmp" for mount in reader["volumeMounts"])


def test_a_hubs_token_is_a_file_and_no_argument() -> None:
    pod = model_facts_pod(OWNER, Source.model_validate(HUB), "x", SETTINGS)
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "hub-token"]
    assert volume["secret"] == {
        "secretName": "hub",
        "items": [{"key": "token", "path": "token"}],
        "defaultMode": 0o440,
    }


def test_facts_are_kept_by_source() -> None:
    found = facts_config_map(OWNER, {"b": {"layers": 48}, "a": {"layers": 8}})
    assert found["metadata"]["name"] == "k-exaone-model-facts"
    assert {key: json.loads(text) for key, text in found["data"].items()} == {"a": {"layers": 8}, "b": {"layers": 48}}
