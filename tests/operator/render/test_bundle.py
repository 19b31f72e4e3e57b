from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineSpec, EngineType
from hanmaru_operator.render.bundle import (
    Bundle,
    choose_revision,
    is_outdated,
    make_bundle,
    read_bundle,
    render_controller_revision,
    revision_manifests,
)
from hanmaru_operator.render.pod import SPEC_KEY
from hanmaru_operator.types import PoolName
from hanmaru_testing.rendered import (
    COMMIT,
    OWNER,
    SETTINGS,
    cpu_bundle,
    deployment_spec,
    gpu_bundle,
    npu_bundle,
    pool_spec,
    shape,
    written,
)

BUNDLES = [gpu_bundle(), cpu_bundle(), npu_bundle()]
IDS = ["gpu", "cpu", "npu"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=IDS)
def test_a_snapshot_comes_back_as_it_was_kept(bundle: Bundle) -> None:
    kept = json.loads(json.dumps(render_controller_revision(bundle, OWNER)))
    assert read_bundle(kept) == bundle


def test_what_a_newer_operator_kept_survives_an_older_one() -> None:
    kept = render_controller_revision(gpu_bundle(), OWNER)
    kept["data"]["fieldOfTheFuture"] = {"x": 1}
    kept["data"]["plan"]["numberOfTheFuture"] = 1
    read = read_bundle(kept)
    assert read is not None
    assert render_controller_revision(read, OWNER)["data"]["fieldOfTheFuture"] == {"x": 1}


@pytest.mark.parametrize(
    "damage",
    [{"data": None}, {"data": {"size": 1}}, {"data": {"template": {}}}, {"metadata": {"name": "x"}}],
)
def test_another_controllers_history_is_no_snapshot(damage: dict[str, Any]) -> None:
    assert read_bundle(render_controller_revision(gpu_bundle(), OWNER) | damage) is None


def test_the_snapshot_of_what_users_wrote_is_found_again() -> None:
    gpu, cpu = gpu_bundle(), cpu_bundle()
    pool = PoolName("a100")
    assert choose_revision([cpu, gpu], pool, gpu.written) == gpu
    assert choose_revision([cpu, gpu], pool, "unknown") is None
    assert choose_revision([cpu, gpu], PoolName("another"), gpu.written) is None
    assert choose_revision([], pool, gpu.written) is None


def test_other_defaults_outdate_a_snapshot_and_change_nothing_of_it() -> None:
    old = gpu_bundle()
    newer = replace(SETTINGS, worker_images={EngineType.SGLANG: "example.com/worker:2"})
    fresh = gpu_bundle(newer)
    assert fresh.revision != old.revision
    assert fresh.written == old.written
    assert choose_revision([old], old.pool, fresh.written) is old
    assert is_outdated(old, fresh)
    assert is_outdated(old, gpu_bundle(replace(SETTINGS, redis_url="redis://elsewhere:6379/0")))
    assert not is_outdated(old, gpu_bundle())


def test_a_pools_own_image_is_never_outdated_by_the_operators() -> None:
    pool = pool_spec(engine={"image": "example.com/mine@sha256:1"})
    newer = replace(SETTINGS, worker_images={})
    old, fresh = (make_bundle(OWNER, written(pool=pool), shape(), settings, COMMIT) for settings in (SETTINGS, newer))
    assert old.image == "example.com/mine@sha256:1"
    assert not is_outdated(old, fresh)


def test_what_the_planner_says_reaches_the_worker_as_it_is() -> None:
    planned = shape().engine_spec
    assert EngineSpec.model_validate(gpu_bundle().engine_spec) == planned


def test_the_engines_file_says_only_what_is_no_default() -> None:
    _, config_map = revision_manifests(gpu_bundle(), OWNER)
    assert config_map["immutable"]
    told = json.loads(config_map["data"][SPEC_KEY])
    assert "toolCallParser" not in told
    assert EngineSpec.model_validate(told) == EngineSpec.model_validate(gpu_bundle().engine_spec)


def test_two_deployments_never_share_a_snapshots_name() -> None:
    """`a-b` on `c` and `a` on `b-c` have the same words, and other hashes."""
    found = set()
    for name, pool in (("a-b", "c"), ("a", "b-c")):
        bundle = make_bundle(
            replace(OWNER, name=name), written(deployment_spec(pools=[{"name": pool}])), shape(), SETTINGS
        )
        found.add(render_controller_revision(bundle, replace(OWNER, name=name))["metadata"]["name"])
    assert len(found) == 2


def test_the_longest_names_still_fit() -> None:
    owner = replace(OWNER, name="d" * 63)
    bundle = make_bundle(owner, written(deployment_spec(pools=[{"name": "p" * 63}])), shape(), SETTINGS)
    manifest = render_controller_revision(bundle, owner)
    assert len(manifest["metadata"]["name"]) <= 253
    assert all(len(value) <= 63 for value in manifest["metadata"]["labels"].values())
    assert manifest["metadata"]["labels"][names.LABEL_WRITTEN] == bundle.written


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(HanmaruError, match="no default image for SGLang"):
        gpu_bundle(replace(SETTINGS, worker_images={}))
    npu = pool_spec(engine={"type": "FuriosaLLM"}, capabilities={})
    with pytest.raises(HanmaruError, match="cannot run one replica on 2 nodes"):
        make_bundle(OWNER, written(pool=npu), shape(2), SETTINGS)
    with pytest.raises(HanmaruError, match=r"podTemplate\.spec is a list"):
        gpu_bundle(serving={"podTemplate": {"spec": []}})
