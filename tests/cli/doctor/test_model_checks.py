from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.model_checks import check_deployments
from hanmaru_testing.doctor_world import claim, deployment, listed, node, pool, unseen, words, world, worst

MISSING = ("Available", "False", "MinimumUnavailable", "0 of 1 replicas are ready")
STARTING = ("Progressing", "True", "StartingReplicas", "1 replica loads")
STUCK = ("Progressing", "False", "DeadlineExceeded", "no progress within 3600 s")
FULL = ("Unschedulable", "True", "DevicesMissing", "needs 1 x 8 nvidia.com/gpu; pool a100: 8 missing")
LICENCE = ("LicenceNotAccepted", "True", "NotAccepted", "this model needs an accepted licence")
STOPPED = ("Available", "False", "Stopped", "lifecycle.stopped is true")


@pytest.mark.parametrize(
    ("conditions", "mark", "said"),
    [
        ((), Mark.OK, ""),
        ((MISSING, STARTING), Mark.WARN, "StartingReplicas"),
        ((MISSING, STUCK), Mark.FAIL, "DeadlineExceeded"),
        ((MISSING, STARTING, FULL), Mark.FAIL, "8 missing"),
        ((MISSING, LICENCE), Mark.FAIL, "spec.licence.accepted"),
        ((STOPPED,), Mark.NOTE, "lifecycle.stopped"),
        ((("Available", "True", "AllReplicasReady", ""), ("Degraded", "True", "NodeNotReady", "node b")), Mark.WARN,
         "node b"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_serve_has_the_operators_reason(conditions: Any, mark: Mark, said: str) -> None:
    findings = check_deployments(world(deployments=listed(deployment(*conditions))))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_a_change_that_nobody_has_looked_at_is_said() -> None:
    assert "generation 0 of 1" in words(check_deployments(world(deployments=listed(deployment(observedGeneration=0)))))


@pytest.mark.parametrize(
    ("claims", "replicas", "mark", "said"),
    [
        (listed(claim()), 2, Mark.OK, ""),
        (listed(), 1, Mark.FAIL, "it is not there"),
        (listed(claim("Pending")), 1, Mark.FAIL, "Pending"),
        (listed(claim(mode="ReadWriteOnce")), 2, Mark.WARN, "2 pods"),
        (listed(claim(mode="ReadWriteOnce")), 1, Mark.OK, ""),
        (unseen(), 2, Mark.UNSEEN, "cannot look"),
    ],
)
def test_a_models_claim_is_bound_and_can_be_read(claims: Any, replicas: int, mark: Mark, said: str) -> None:
    one = deployment(spec={"replicas": replicas})
    findings = check_deployments(world(deployments=listed(one), claims=claims))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


HUB = {"source": {"type": "HuggingFace", "huggingFace": {"repo": "LGAI-EXAONE/K-EXAONE-236B-A23B"}}}
IMAGE = {"source": {"type": "Image", "image": {"reference": "registry/model:1"}}}


def plan(**more: Any) -> dict[str, Any]:
    return {"plan": [{"pool": "a100", "fits": True, "nodes": 1, **more}]}


@pytest.mark.parametrize(
    ("spec", "status", "version", "mark", "said"),
    [
        (HUB, plan(weightBytes=474_000_000_000), "v1.36.0", Mark.OK, ""),
        (HUB, plan(weightBytes=2_000_000_000_000), "v1.36.0", Mark.FAIL, "2000 GB"),
        (IMAGE, plan(), "v1.36.0", Mark.OK, ""),
        (IMAGE, plan(), "v1.34.0", Mark.WARN, "ImageVolume"),
        ({}, plan(contextTokens=262_144, globalTokens=1_880_000), "v1.36.0", Mark.OK, ""),
        ({}, plan(contextTokens=262_144, globalTokens=300_000), "v1.36.0", Mark.WARN, "two long ones"),
        ({"pools": [{"name": "b200"}]}, {}, "v1.36.0", Mark.FAIL, "b200"),
        ({"serving": {"podTemplate": {"spec": {"volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]}}}}, plan(), "v1.36.0", Mark.WARN,
         "64Mi"),
        ({"serving": {"podTemplate": {"spec": {"containers": [
            {"name": "engine", "resources": {"limits": {"memory": "8Gi"}}}]}}}}, plan(), "v1.36.0", Mark.NOTE, "8Gi"),
    ],
)  # fmt: skip
def test_sizes_that_will_not_do_are_said(
    spec: dict[str, Any], status: dict[str, Any], version: str, mark: Mark, said: str
) -> None:
    seen = world(deployments=listed(deployment(spec=spec, **status)), version=version, nodes=listed(node()))
    findings = check_deployments(seen)
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_one_node_without_room_for_the_download_is_a_warning() -> None:
    small = node("b")
    allocatable = {**small.status.allocatable, "ephemeral-storage": "100Gi"}
    small = msgspec.structs.replace(small, status=msgspec.structs.replace(small.status, allocatable=allocatable))
    one = deployment(spec=HUB, **plan(weightBytes=474_000_000_000))
    findings = check_deployments(world(deployments=listed(one), nodes=listed(node("a"), small), pools=listed(pool())))
    assert (worst(findings), "b have less disk" in words(findings)) == (Mark.WARN, True)


def test_a_spec_of_a_newer_version_is_said_to_be_that() -> None:
    assert "Upgrade hanmaru" in words(check_deployments(world(deployments=listed(deployment(spec={"pools": 3})))))
