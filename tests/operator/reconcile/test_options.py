"""A pool offers what could be found out about it, and says what is still being found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, Serving
from hanmaru_contracts.wire.engine_spec import EngineSpec, EngineType
from hanmaru_operator.reconcile.model_facts import Known, Unknown
from hanmaru_operator.reconcile.options import Asker, Choice, choose
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.settings import RenderSettings, TierRedis
from hanmaru_testing.planning import model, pool_spec

SPEC = ModelDeploymentSpec.model_validate(
    {
        "source": {
            "type": "PersistentVolumeClaim",
            "persistentVolumeClaim": {"claimName": "weights", "path": "exaone"},
        },
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "route": {"name": "k-exaone"},
        "pools": [{"name": "a100"}],
    }
)
SETTINGS = RenderSettings(
    worker_images={EngineType.SGLANG: "worker:1"},
    operator_image="operator:1",
    redis_url="redis://redis",
    trace_endpoint="http://collector:4317",
)


def chosen(
    known: Known | Unknown,
    *,
    settings: RenderSettings = SETTINGS,
    pool: AcceleratorPoolSpec | None = None,
    **serving: Any,
) -> Choice:
    spec = SPEC.model_copy(update={"serving": Serving.model_validate(serving)})
    asker = Asker(Owner("default", "k-exaone", "uid"), spec, "", ())
    return choose(asker, spec.pools[0], pool or pool_spec(), (), known, {}, settings)


@pytest.mark.parametrize(
    ("known", "is_pending"),
    [(Unknown(""), True), (Unknown("config.json is no JSON"), False), (Known(model("k-exaone"), ""), False)],
    ids=["being read", "unreadable", "read"],
)
def test_a_pool_is_pending_only_while_the_model_is_being_read(known: Known | Unknown, is_pending: bool) -> None:
    assert chosen(known).option.is_pending == is_pending


def test_what_an_author_may_not_set_is_named() -> None:
    template = {
        "spec": {"hostNetwork": True, "nodeSelector": {"a": "b"}, "containers": [{"name": "engine", "args": []}]}
    }
    choice = chosen(Known(model("k-exaone"), ""), podTemplate=template)
    assert choice.ignored_fields == ("spec.hostNetwork", "spec.containers[engine].args")
    assert choice.bundle is not None
    assert "hostNetwork" not in choice.bundle.pod_template["spec"]


def test_what_workers_read_has_the_deployments_names() -> None:
    bundle = chosen(Known(model("k-exaone"), ""), extraArgs=["--x"]).bundle
    assert bundle is not None
    spec = EngineSpec.model_validate(bundle.engine_spec)
    assert (spec.model.id, spec.route, spec.pool, spec.checkpoint) == (
        "default/k-exaone",
        "k-exaone",
        "a100",
        "/model/exaone",
    )
    assert spec.extra_args == ("--x",)
    assert spec.trace_endpoint == "http://collector:4317"


def test_a_shared_cache_needs_the_installations_redis_and_its_lack_is_told() -> None:
    known = Known(model("k-exaone"), "")
    asked: dict[str, Any] = {"kvCache": {"tier": {}}}
    without = chosen(known, **asked)
    assert without.bundle is not None
    assert "sharedCache" not in without.bundle.engine_spec
    assert "this installation has no Redis for it" in without.plan.message
    having = chosen(known, settings=replace(SETTINGS, tier=TierRedis("redis://tier")), **asked)
    assert having.bundle is not None
    assert EngineSpec.model_validate(having.bundle.engine_spec).shared_cache is not None
    assert "no Redis" not in having.plan.message


def test_no_memory_is_kept_for_a_shared_cache_that_the_installation_has_no_redis_for() -> None:
    """A pool of cores computes in the memory that such a cache would take: here more than there is beside the model."""
    cores = pool_spec("6Gi", 2, resource="cpu", dtypes=("float32",), features=("hybrid-kv",))
    known = Known(model("tiny"), "")
    asked: dict[str, Any] = {"kvCache": {"tier": {"hostGigabytes": 6}}}
    alone, without = chosen(known, pool=cores), chosen(known, pool=cores, **asked)
    assert (alone.bundle is not None, without.bundle is not None) == (True, True)
    assert without.plan.global_tokens == alone.plan.global_tokens
    assert "takes 6 GB" not in without.plan.message
    assert "this installation has no Redis for it" in without.plan.message
    having = chosen(known, pool=cores, settings=replace(SETTINGS, tier=TierRedis("redis://tier")), **asked)
    assert having.bundle is None
