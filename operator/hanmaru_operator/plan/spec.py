"""An `EnginePlan` and a deployment's names -> the `EngineSpec` its workers read. Pure, and the only maker of one.

`render` puts it into the ConfigMap of a revision, `hanmaru plan -o yaml` prints it. It decides nothing: all of the
plan's numbers pass through as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.model_deployment import DeploymentPool, KvCacheTier, ModelDeploymentSpec
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, KvCache, SharedCache

from hanmaru_operator.plan.engine import EnginePlan
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.model import ModelFacts

_PARSERS = {"exaone_moe": ("qwen3", "hermes")}
"""Reasoning and tool-call parser by `model_type`, as LG names them for SGLang."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What a deployment adds to a plan."""

    model: ModelRef
    spec: ModelDeploymentSpec
    entry: DeploymentPool
    """The pool planned for, of `spec.pools`."""
    checkpoint: str
    """Folder as the worker sees it."""
    trace_endpoint: str | None = None


def engine_spec(plan: EnginePlan, facts: ModelFacts, pool: EnginePool, naming: Naming) -> EngineSpec:
    """What every rank of a replica reads. `facts` and `pool` are those the plan was made from."""
    lifecycle, serving = naming.spec.lifecycle, naming.entry.serving or naming.spec.serving
    reasoning, tools = _PARSERS.get(facts.model_type, (None, None))
    known = [name for name, parser in (("reasoning", reasoning), ("tools", tools)) if parser is not None]
    features = dict.fromkeys([*plan.features, *known])
    fit, request = plan.fit, plan.request
    return EngineSpec(
        model=naming.model,
        route=naming.spec.route.name,
        pool=plan.pool,
        engine=plan.engine,
        device=pool.device,
        checkpoint=naming.checkpoint,
        dtype=plan.dtype,
        context_tokens=plan.context_tokens,
        parallelism=plan.sizes,
        kv_cache=KvCache(
            page_size=request.page_size,
            max_total_tokens=fit.max_total_tokens,
            memory_fraction=None if pool.device is Device.CPU else fit.memory_fraction,
            sliding_tokens_ratio=fit.sliding_ratio,
            hybrid=request.hybrid or not facts.sliding_layers,
        ),
        shared_cache=_shared_cache(plan.tier) if plan.tier is not None else None,
        draft_tokens=request.draft_tokens,
        max_running_requests=fit.running_requests,
        prefill_chunk_tokens=fit.chunk_tokens,
        reasoning_parser=reasoning,
        tool_call_parser=tools,
        features=tuple(features),
        # The deployment's flags come behind the pool's, so that they win.
        extra_args=(*pool.engine_args, *serving.extra_args),
        startup_timeout_s=float(lifecycle.startup_timeout_seconds),
        drain_timeout_s=float(lifecycle.drain_seconds),
        trace_endpoint=naming.trace_endpoint,
    )


def _shared_cache(tier: KvCacheTier) -> SharedCache:
    return SharedCache(
        max_bytes=tier.max_gigabytes * 10**9,
        life_s=float(tier.life_seconds),
        max_prefix_tokens=tier.max_prefix_tokens,
        host_gb=tier.host_gigabytes,
    )
