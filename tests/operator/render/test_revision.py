from __future__ import annotations

from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, Source
from hanmaru_operator.render.revision import Written, revision_of, source_hash, what_was_written, written_hash
from hanmaru_testing.rendered import CLAIM, HUB, deployment_spec, pool_spec, written


def test_hashes_of_what_was_written_may_never_change() -> None:
    """A failure here means that an upgrade of the operator would reload every model. See `render.revision`."""
    assert written_hash(written()) == "717a08c6ff1812f2"
    assert revision_of(written(), "example.com/worker:1") == "b56dc843e8"
    assert source_hash(Source.model_validate(CLAIM)) == "65de329dab"


@pytest.mark.parametrize(
    "changes",
    [
        {"source": CLAIM},
        {"route": {"name": "other"}},
        {"lifecycle": {"drainSeconds": 1}},
        {"lifecycle": {"startupTimeoutSeconds": 1}},
        {"serving": {"extraArgs": ["--x"]}},
        {"serving": {"contextTokens": 4096}},
        {"serving": {"parallelism": {"tensor": 8}}},
        {"serving": {"speculative": {"type": "None"}}},
        {"serving": {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}},
        {"pools": [{"name": "a100", "source": CLAIM}]},
        {"pools": [{"name": "a100", "serving": {"contextTokens": 4096}}]},
        {"pools": [{"name": "other"}]},
    ],
)
def test_what_an_engine_depends_on_makes_a_new_revision(changes: dict[str, Any]) -> None:
    assert written_hash(written(deployment_spec(**changes))) != written_hash(written())


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 3},
        {"route": {"name": "k-exaone", "weight": 1}},
        {"rollout": {"paused": True}},
        {"lifecycle": {"stopped": True}},
        {"access": {"from": "All"}},
        {"licence": {"accepted": "another", "use": "ThirdParty"}},
        {"pools": [{"name": "a100", "minReplicas": 1, "maxReplicas": 2}, {"name": "second"}]},
        {"pools": [{"name": "a100", "source": HUB}]},
        {"aFieldOfANewerOperator": {"x": 1}},
    ],
)
def test_what_an_engine_does_not_see_makes_none(changes: dict[str, Any]) -> None:
    assert written_hash(written(deployment_spec(**changes))) == written_hash(written())


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"image": "example.com/worker:2"}},
        {"engine": {"args": ["--x"]}},
        {"engine": {"env": [{"name": "A", "value": "b"}]}},
        {"devices": {"resource": {"name": "nvidia.com/gpu"}, "memory": "80Gi", "perNode": 8}},
        {"devices": {"resource": {"name": "nvidia.com/gpu"}, "memory": "40Gi", "perNode": 4}},
        {
            "devices": {
                "resource": {"name": "nvidia.com/gpu"},
                "memory": "40Gi",
                "perNode": 8,
                "perPodExtra": {"rdma/hca": "1"},
            }
        },
        {"capabilities": {"features": ["hybrid-kv"]}},
        {"podTemplate": {"spec": {"hostNetwork": True}}},
    ],
)
def test_a_pools_engine_and_devices_make_a_new_revision(changes: dict[str, Any]) -> None:
    assert written_hash(written(pool=pool_spec(**changes))) != written_hash(written())


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": {**pool_spec().nodes.model_dump(by_alias=True), "selectorTerms": [_term] * 2}}
        for _term in [{"matchExpressions": [{"key": "rack", "operator": "Exists"}]}]
    ]
    + [
        {"scheduling": {"bindTimeoutSeconds": 60, "priorityClassName": "high"}},
        {"topology": {"domainKey": "rack"}},
        {"allowedNamespaces": {"from": "None"}},
        {"cost": {"perDeviceHour": "2.10", "currency": "USD"}},
        {"capabilities": {"features": ["hybrid-kv", "mtp"]}},
    ],
)
def test_where_pods_may_go_and_who_may_use_a_pool_makes_none(changes: dict[str, Any]) -> None:
    assert written_hash(written(pool=pool_spec(**changes))) == written_hash(written())


def test_a_restart_is_a_new_revision_and_so_is_another_image() -> None:
    assert written_hash(written(restarted_at="2026-11-22T00:00:00Z")) != written_hash(written())
    assert revision_of(written(), "a") != revision_of(written(), "b")
    assert len(revision_of(written(), "a")) == 10


def test_an_empty_pod_template_is_not_the_same_as_one_that_says_something_empty() -> None:
    volumes = {"spec": {"volumes": [{"name": "x", "emptyDir": {}}]}}
    assert what_was_written(written(deployment_spec(serving={"podTemplate": volumes})))["podTemplates"] == [{}, volumes]


def test_absent_fields_leave_no_trace() -> None:
    """So a field that a newer operator knows, and nobody has set, changes no hash."""

    def values(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [value, *(found for item in value.values() for found in values(item))]
        if isinstance(value, list):
            return [value, *(found for item in value for found in values(item))]
        return [value]

    found = what_was_written(written())
    del found["podTemplates"]
    assert not [value for value in values(found) if value in (None, "", [], {})]


def test_the_pools_own_source_and_settings_replace_the_deployments() -> None:
    spec = deployment_spec(pools=[{"name": "a100", "source": CLAIM, "serving": {"contextTokens": 7}}])
    found = Written(spec, spec.pools[0], pool_spec())
    assert isinstance(spec, ModelDeploymentSpec)
    assert found.source.persistent_volume_claim is not None
    assert found.serving.context_tokens == 7
