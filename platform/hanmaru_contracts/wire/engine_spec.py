"""`EngineSpec`: the planner's result, read by the worker's supervisor from the file in `HANMARU_ENGINE_SPEC`.

It says what to serve and how, in the field's terms; only `hanmaru_worker.argv` knows any engine's flags.
On a cluster the operator writes it to a ConfigMap; on a laptop `hanmaru up` writes the file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.names import ENGINE_HTTP_PORT, SUPERVISOR_HTTP_PORT

Positive = Annotated[int, Field(gt=0)]


class EngineType(StrEnum):
    """Programs that can run a model."""

    SGLANG = "SGLang"
    FURIOSA_LLM = "FuriosaLLM"


class Device(StrEnum):
    """What the engine computes on."""

    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


class Parallelism(StrictSchema):
    """Sizes of the engine's process groups. Expert and data parallel divide the tensor group; they add no devices."""

    tensor: Positive = 1
    expert: Positive = 1
    pipeline: Positive = 1
    data: Positive = 1
    """Copies of the attention layers in the tensor group, each with a cache of its own."""

    @property
    def ranks(self) -> int:
        """Processes that compute, each on a device of its own."""
        return self.tensor * self.pipeline

    @model_validator(mode="after")
    def _groups_divide_the_tensor_group(self) -> Self:
        for name, size in (("expert", self.expert), ("data", self.data)):
            if self.tensor % size:
                raise ValueError(f"{name}={size} does not divide tensor={self.tensor}")
        return self


class KvCache(StrictSchema):
    """How much the engine keeps. Either bound may be absent: then the engine fills the device."""

    page_size: Positive = 1
    """Tokens a page."""
    max_total_tokens: Positive | None = None
    """Tokens the global layers' pool holds."""
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the device's memory for weights and pools together."""
    sliding_tokens_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens of the sliding layers' pool as a share of the global one's."""
    hybrid: bool = True
    """Sliding layers have a pool of their own. False: all layers keep every token."""


class SharedCache(StrictSchema):
    """A tier of the prefix cache on Redis, which the replicas of a model share (docs/shared-cache.md)."""

    max_bytes: Positive = 4 * 1024**3
    """Of all pages of the model in Redis."""
    life_s: Annotated[float, Field(gt=0)] = 3600.0
    """Of a page that nobody reads from there."""
    max_prefix_tokens: Positive = 16_384
    """Longer prefixes are not stored: Redis is for short, hot ones."""
    min_prefix_tokens: Positive = 256
    """Shorter rests of a prompt are computed rather than looked for."""
    host_gb: Positive = 8
    """Memory of each rank's host, in 10^9 bytes, through which pages go to Redis and back."""
    wait_s: Annotated[float, Field(gt=0)] = 0.5
    """How long a request may wait for pages on their way, besides a quarter of a second for each 1,024 tokens asked
    for, which are all that the replica itself has not cached."""


class EngineSpec(StrictSchema):
    """One replica's engine, the same for every rank of its group."""

    model: ModelRef
    route: str
    """What callers put in `model`."""
    pool: str = "local"
    engine: EngineType = EngineType.SGLANG
    device: Device = Device.CPU
    checkpoint: str
    """Path of the model's folder as the worker sees it."""
    dtype: str = "bfloat16"
    context_tokens: Positive
    """Longest prompt and output together."""
    parallelism: Parallelism = Parallelism()
    kv_cache: KvCache = KvCache()
    shared_cache: SharedCache | None = None
    """Absent: what a replica has cached is its own."""
    draft_tokens: Positive | None = None
    """Tokens that the model's own MTP block drafts a step. Absent: no speculation."""
    max_running_requests: Positive = 16
    prefill_chunk_tokens: Positive = 2048
    reasoning_parser: str | None = "qwen3"
    tool_call_parser: str | None = "hermes"
    features: tuple[str, ...] = ()
    """Registered as the worker's capabilities."""
    extra_args: tuple[str, ...] = ()
    """Appended to the engine's flags as they stand."""
    http_port: Positive = ENGINE_HTTP_PORT
    supervisor_port: Positive = SUPERVISOR_HTTP_PORT
    startup_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """How long the engine may take until it has generated its first token."""
    hang_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """How long a running engine may fail its health check before it counts as hung."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 120.0
    """How long running requests may take to finish after SIGTERM."""
    trace_endpoint: str | None = None
    """OTLP gRPC endpoint (`http://host:4317`) for the engine's spans. Absent: no tracing."""
