"""Models and pools for the planner's tests: the shipped configurations, and pools in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_operator.plan.config_json import read_model
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.model import ModelFacts

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "operator" / "examples" / "models"
CONFIGS = {
    "k-exaone": MODELS / "k-exaone-236b.json",
    "k-exaone-fp8": MODELS / "k-exaone-236b-fp8.json",
    "k-exaone-nvfp4": MODELS / "k-exaone-236b-nvfp4.json",
    "k-exaone-2": MODELS / "k-exaone-2-shaped-750b.json",
    "tiny": ROOT / "checkpoints" / "tiny-k-exaone" / "config.json",
}
ALL_FEATURES = ("mtp", "hybrid-kv", "expert-parallel")


def config(name: str) -> dict[str, Any]:
    """A fresh copy of a model's config.json."""
    found: dict[str, Any] = json.loads(CONFIGS[name].read_text())
    return found


@cache
def model(name: str) -> ModelFacts:
    """Facts of a model in `CONFIGS`."""
    return read_model(CONFIGS[name].read_bytes())


def pool_spec(
    memory: str = "80Gi",
    per_node: int = 8,
    *,
    resource: str = "nvidia.com/gpu",
    engine: str = "SGLang",
    dtypes: Sequence[str] = ("bfloat16",),
    features: Sequence[str] = ALL_FEATURES,
    context: int = 262_144,
) -> AcceleratorPoolSpec:
    """A pool; the defaults are A100s of 80 GB."""
    return AcceleratorPoolSpec.model_validate(
        {
            "nodes": {"selectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]},
            "devices": {"type": "Resource", "resource": {"name": resource}, "memory": memory, "perNode": per_node},
            "engine": {"type": engine},
            "capabilities": {"maxContextTokens": context, "dtypes": list(dtypes), "features": list(features)},
        }
    )


def engine_pool(memory: str = "80Gi", per_node: int = 8, *, name: str = "pool", **more: Any) -> EnginePool:
    """The same, as the planner takes it."""
    return EnginePool.from_spec(name, pool_spec(memory, per_node, **more))
