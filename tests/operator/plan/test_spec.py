"""What a plan says is what the workers read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, Serving
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, EngineType, SharedCache
from hanmaru_operator.plan.engine import EnginePlan, plan_engine
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.spec import Naming, engine_spec
from hanmaru_testing.planning import engine_pool, model, pool_spec

DEPLOYMENT = ModelDeploymentSpec.model_validate(
    {
        "source": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models"}},
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "route": {"name": "k-exaone"},
        "pools": [{"name": "a100"}],
        "serving": {"extraArgs": ["--schedule-policy", "lpm"]},
        "lifecycle": {"startupTimeoutSeconds": 1800, "drainSeconds": 90},
    }
)
NAMING = Naming(
    model=ModelRef(namespace="team", name="k"),
    spec=DEPLOYMENT,
    entry=DEPLOYMENT.pools[0],
    checkpoint="/model/tiny",
    trace_endpoint="http://collector:4317",
)


def spec_of(name: str, pool: EnginePool, **serving: Any) -> tuple[EngineSpec, EnginePlan]:
    plan = plan_engine(model(name), pool, Serving.model_validate(serving))
    assert isinstance(plan, EnginePlan)
    return engine_spec(plan, model(name), pool, NAMING), plan


def test_a_gpu_engine_fills_its_devices_by_share() -> None:
    spec, plan = spec_of("k-exaone", engine_pool("40Gi"))
    assert (spec.device, spec.engine, spec.dtype) == (Device.CUDA, EngineType.SGLANG, "bfloat16")
    assert spec.parallelism.ranks == 16
    assert spec.kv_cache.max_total_tokens is None
    assert spec.kv_cache.memory_fraction == plan.fit.memory_fraction
    assert spec.kv_cache.sliding_tokens_ratio == plan.fit.sliding_ratio
    assert (spec.draft_tokens, spec.max_running_requests) == (3, plan.fit.running_requests)
    assert (spec.reasoning_parser, spec.tool_call_parser) == ("qwen3", "hermes")
    assert set(spec.features) == {"mtp", "hybrid-kv", "expert-parallel", "reasoning", "tools"}


def test_names_and_times_are_the_deployments() -> None:
    spec, plan = spec_of("k-exaone", engine_pool("40Gi"))
    assert (spec.model.id, spec.route, spec.pool, spec.checkpoint) == ("team/k", "k-exaone", plan.pool, "/model/tiny")
    assert (spec.startup_timeout_s, spec.drain_timeout_s) == (1800.0, 90.0)
    assert spec.trace_endpoint == "http://collector:4317"


def test_a_pools_own_settings_take_the_place_of_the_deployments() -> None:
    entry = DEPLOYMENT.pools[0].model_copy(update={"serving": Serving(extra_args=("--x",))})
    pool, facts = engine_pool(), model("k-exaone")
    plan = plan_engine(facts, pool, Serving())
    assert isinstance(plan, EnginePlan)
    assert engine_spec(plan, facts, pool, dataclasses.replace(NAMING, entry=entry)).extra_args == ("--x",)


def test_a_shared_cache_is_there_where_it_is_asked_for_and_the_engine_has_one() -> None:
    tier = {"maxGigabytes": 2, "lifeSeconds": 60, "maxPrefixTokens": 4096, "hostGigabytes": 5}
    found, _ = spec_of("k-exaone", engine_pool(), kvCache={"tier": tier})
    assert found.shared_cache == SharedCache(max_bytes=2 * 10**9, life_s=60.0, max_prefix_tokens=4096, host_gb=5)
    assert spec_of("k-exaone", engine_pool())[0].shared_cache is None
    npu: dict[str, Any] = {"resource": "furiosa.ai/rngd", "engine": "FuriosaLLM", "dtypes": ("nvfp4",), "features": ()}
    other, plan = spec_of("k-exaone-nvfp4", engine_pool("48Gi", context=49_483, **npu), kvCache={"tier": tier})
    assert other.shared_cache is None
    assert [note for note in plan.notes if "only SGLang has one" in note]


def test_a_shared_cache_takes_its_memory_from_a_machine_that_computes_in_it() -> None:
    cpu = engine_pool("24Gi", 2, name="cpu", resource="cpu", dtypes=("float32",), features=("hybrid-kv",))
    _, alone = spec_of("tiny", cpu)
    _, shared = spec_of("tiny", cpu, kvCache={"tier": {"hostGigabytes": 8}})
    assert alone.device_bytes - shared.device_bytes == 8 * 10**9
    assert shared.kv_bytes_per_rank <= alone.kv_bytes_per_rank
    assert "a shared cache takes 8 GB of what the pool gives a rank" in shared.notes
    _, device = spec_of("k-exaone", engine_pool(), kvCache={"tier": {"hostGigabytes": 8}})
    assert device.device_bytes == spec_of("k-exaone", engine_pool())[1].device_bytes
    assert [note for note in device.notes if "node's memory" in note]


def test_an_engine_registers_only_features_it_has() -> None:
    spec = pool_spec().model_dump(by_alias=True)
    spec |= {"engine": {"type": "FuriosaLLM"}, "capabilities": {"features": ["expert-parallel", "hybrid-kv"]}}
    assert EnginePool.from_spec("p", type(pool_spec()).model_validate(spec)).features == ("hybrid-kv",)


def test_a_cpu_engine_gets_tokens_instead() -> None:
    pool = engine_pool("6Gi", 2, resource="cpu", dtypes=("float32",), features=("hybrid-kv",))
    spec, plan = spec_of("tiny", pool, contextTokens=16_384)
    assert (spec.device, spec.dtype) == (Device.CPU, "float32")
    assert spec.kv_cache.max_total_tokens == plan.global_tokens
    assert spec.kv_cache.memory_fraction is None


def test_an_npu_engine_is_named_with_its_device() -> None:
    pool = engine_pool(
        "48Gi", resource="furiosa.ai/rngd", engine="FuriosaLLM", dtypes=("nvfp4",), features=(), context=49_483
    )
    spec, _ = spec_of("k-exaone-nvfp4", pool)
    assert (spec.device, spec.engine, spec.draft_tokens) == (Device.NPU, EngineType.FURIOSA_LLM, None)
    assert spec.context_tokens == 49_483


@pytest.mark.parametrize(("features", "hybrid"), [(("hybrid-kv",), True), ((), False)])
def test_one_pool_is_asked_for_where_a_pool_offers_no_hybrid_cache(features: tuple[str, ...], hybrid: bool) -> None:
    spec, _ = spec_of("k-exaone", engine_pool(features=features))
    assert spec.kv_cache.hybrid is hybrid
    assert ("hybrid-kv" in spec.features) is hybrid
    assert (spec.kv_cache.sliding_tokens_ratio is not None) is hybrid


def test_the_pools_flags_come_before_the_deployments() -> None:
    spec = pool_spec().model_dump(by_alias=True) | {"engine": {"type": "SGLang", "args": ["--cpu-offload-gb", "1"]}}
    pool = EnginePool.from_spec("p", type(pool_spec()).model_validate(spec))
    found, _ = spec_of("k-exaone", pool)
    assert found.extra_args == ("--cpu-offload-gb", "1", "--schedule-policy", "lpm")


def test_a_model_of_another_family_gets_no_parsers() -> None:
    facts = dataclasses.replace(model("tiny"), model_type="llama")
    pool = engine_pool()
    plan = plan_engine(facts, pool, Serving())
    assert isinstance(plan, EnginePlan)
    spec = engine_spec(plan, facts, pool, NAMING)
    assert (spec.reasoning_parser, spec.tool_call_parser) == (None, None)
    assert not {"reasoning", "tools"} & set(spec.features)
