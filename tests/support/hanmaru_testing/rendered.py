"""Deployments, pools and plans for tests of what the operator renders: three that differ in everything that matters."""

from __future__ import annotations

from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, PlanStatus
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, EngineType, KvCache, Parallelism
from hanmaru_operator.render.bundle import Bundle, GroupShape, make_bundle
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.revision import Written
from hanmaru_operator.render.settings import RedisFile, RenderSettings

OWNER = Owner("team", "k-exaone", "uid-1")
COMMIT = "c0ffee0000000000000000000000000000000000"
SETTINGS = RenderSettings(
    worker_images={EngineType.SGLANG: "example.com/worker:1", EngineType.FURIOSA_LLM: "example.com/npu:1"},
    operator_image="example.com/operator:1",
    redis_url="redis://redis.hanmaru.svc:6379/0",
    redis_user="worker",
    redis_files=frozenset({RedisFile.PASSWORD}),
    trace_endpoint="http://collector.hanmaru.svc:4317",
    gateway_namespace="hanmaru",
    gateway_pod_labels={"app.kubernetes.io/component": "gateway"},
    metrics_namespace_labels={"kubernetes.io/metadata.name": "monitoring"},
)

HUB = {
    "type": "HuggingFace",
    "huggingFace": {"repo": "LGAI-EXAONE/K-EXAONE-236B-A23B", "tokenSecretRef": {"name": "hub", "key": "token"}},
}
CLAIM = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models", "path": "tiny"}}
IMAGE = {
    "type": "Image",
    "image": {"reference": "example.com/k-exaone-npu:1", "pullSecrets": [{"name": "registry"}], "path": "model"},
}


def pool_spec(**changes: Any) -> AcceleratorPoolSpec:
    """Nodes of eight devices of 40 GiB."""
    spec = {
        "nodes": {
            "selectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "devices": {"resource": {"name": "nvidia.com/gpu"}, "memory": "40Gi", "perNode": 8},
        "capabilities": {"features": ["mtp", "hybrid-kv"]},
    }
    return AcceleratorPoolSpec.model_validate(spec | changes)


CPU_DEVICES = {"resource": {"name": "cpu"}, "memory": "8Gi", "perNode": 2}
NPU_DEVICES = {"resource": {"name": "furiosa.ai/rngd"}, "memory": "48Gi", "perNode": 4}


def deployment_spec(**changes: Any) -> ModelDeploymentSpec:
    """K-EXAONE from a hub, on pool `a100`."""
    spec = {
        "source": HUB,
        "licence": {"accepted": "K-EXAONE AI Model License"},
        "route": {"name": "k-exaone"},
        "pools": [{"name": "a100"}],
    }
    return ModelDeploymentSpec.model_validate(spec | changes)


def written(
    deployment: ModelDeploymentSpec | None = None, pool: AcceleratorPoolSpec | None = None, restarted_at: str = ""
) -> Written:
    """The first pool of a deployment."""
    spec = deployment or deployment_spec()
    return Written(spec, spec.pools[0], pool or pool_spec(), restarted_at)


def shape(size: int = 2, devices_per_pod: int = 8, **spec: Any) -> GroupShape:
    """What a planner might say of `OWNER` on pool `a100`: one tensor group over all devices."""
    fields: dict[str, Any] = {
        "model": ModelRef(namespace=OWNER.namespace, name=OWNER.name),
        "route": "k-exaone",
        "pool": "a100",
        "device": Device.CUDA,
        "checkpoint": "/model",
        "startup_timeout_s": 3600.0,
        "drain_timeout_s": 120.0,
        "trace_endpoint": SETTINGS.trace_endpoint,
        "context_tokens": 131072,
        "parallelism": Parallelism(tensor=size * devices_per_pod),
        "kv_cache": KvCache(page_size=16, max_total_tokens=200_000, memory_fraction=0.9),
        "draft_tokens": 3,
        "features": ("mtp", "hybrid-kv"),
    }
    plan = PlanStatus(pool="a100", fits=True, nodes=size, devices=size * devices_per_pod)
    return GroupShape(size, devices_per_pod, EngineSpec(**fields | spec), plan)


def gpu_bundle(settings: RenderSettings = SETTINGS, **deployment: Any) -> Bundle:
    """Two nodes of eight devices, downloaded from a hub."""
    return make_bundle(OWNER, written(deployment_spec(**deployment)), shape(), settings, COMMIT)


def cpu_bundle(settings: RenderSettings = SETTINGS) -> Bundle:
    """One node of cores, a claim."""
    deployment = deployment_spec(source=CLAIM, pools=[{"name": "cpu"}])
    planned = shape(
        *(1, 2),
        pool="cpu",
        checkpoint="/model/tiny",
        device=Device.CPU,
        parallelism=Parallelism(),
        draft_tokens=None,
        features=("hybrid-kv",),
    )
    return make_bundle(OWNER, written(deployment, pool_spec(devices=CPU_DEVICES)), planned, settings)


def npu_bundle(settings: RenderSettings = SETTINGS) -> Bundle:
    """One node of four NPUs, an image."""
    deployment = deployment_spec(pools=[{"name": "rngd", "source": IMAGE}])
    pool = pool_spec(devices=NPU_DEVICES, engine={"type": "FuriosaLLM"}, capabilities={"features": ["hybrid-kv"]})
    planned = shape(
        *(1, 4),
        pool="rngd",
        engine=EngineType.FURIOSA_LLM,
        checkpoint="/model/model",
        device=Device.NPU,
        draft_tokens=None,
        features=("hybrid-kv",),
    )
    return make_bundle(OWNER, written(deployment, pool), planned, settings)
