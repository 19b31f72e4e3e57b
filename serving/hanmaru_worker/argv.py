"""An engine spec and a rank -> SGLang's flags and environment. Pure; `engines` calls it, `docs/sglang-plugin.md`
explains the flags.

Keys are not here: they reach the engine by the file of `--config` alone. `extra_args` of a spec may tune the engine but
not open it: flags that would loosen what `docs/trust.md` promises are refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec
from hanmaru_redis.settings import REDIS_FROM_ENVIRONMENT

from hanmaru_worker.settings import GroupRank, is_loopback

CPU_PLATFORM = "hanmaru_cpu"
"""Our out-of-tree platform, as `SGLANG_PLATFORM` and the entry point in pyproject.toml name it."""

KEYS_AND_DOORS = frozenset({
    # Ours to set: the supervisor, the registration and the keys depend on them.
    "--config", "--api-key", "--admin-api-key", "--host", "--port", "--served-model-name", "--model-path", "--model",
    "--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr", "--nccl-port", "--skip-server-warmup",
    # Code or pickles from outside.
    "--trust-remote-code", "--load-format", "--enable-custom-logit-processor", "--custom-weight-loader",
    "--forward-hooks", "--model-loader-extra-config", "--decrypted-config-file", "--decrypted-draft-config-file",
    "--trust-request-chat-template", "--trust-mm-content-hashes", "--speculative-draft-load-format",
    "--speculative-draft-model-path", "--speculative-draft-model", "--modelexpress-config",
    "--remote-instance-weight-loader-seed-instance-ip", "--remote-instance-weight-loader-seed-instance-service-port",
    "--remote-instance-weight-loader-backend", "--sidecar", "--sidecar-args", "--debug-tensor-dump-input-file",
    # Listeners without our keys. With several tokenizer workers SGLang checks no key at all (read in 0.5.23).
    "--tokenizer-worker-num", "--grpc-mode", "--smg-grpc-mode", "--grpc-port", "--smg-http-sidecar-port",
    "--grpc-http-sidecar-port", "--use-ray", "--enable-http-worker-reuseport", "--encoder-only",
    "--kv-events-config", "--load-publish-endpoint", "--gated-launch-port", "--metrics-host", "--metrics-port",
    "--disaggregation-mode", "--disaggregation-bootstrap-port", "--enable-pd-role-switch", "--encoder-bootstrap-port",
    "--encoder-register-urls", "--engine-info-bootstrap-port",
    "--remote-instance-weight-loader-start-seed-via-transfer-engine",
    "--remote-instance-weight-loader-send-weights-group-ports", "--decoupled-spec-bind-endpoint",
    "--decoupled-spec-connect-endpoints", "--weight-cache-socket",
    # Prompts to others.
    "--tool-server", "--encoder-urls",
    # Prompts or keys in logs, files or traces.
    "--log-level", "--log-requests", "--log-requests-level", "--log-requests-target", "--crash-dump-folder",
    "--export-metrics-to-file", "--export-metrics-to-file-dir", "--debug-tensor-dump-output-folder",
    "--msprobe-dump-config",
    "--enable-trace", "--otlp-traces-endpoint", "--trace-modules", "--spec-trace-dir",
    # Caches outside the engine: ours is sealed (docs/shared-cache.md), others hold pages that anybody may have made.
    "--hicache-storage-backend", "--hicache-storage-backend-extra-config", "--file-storage-path",
    "--enable-unified-cache-external-linker", "--unified-cache-external-linker-backend",
    "--unified-cache-external-linker-config", "--enable-lmcache", "--lmcache-config-file",
    "--enable-flexkv", "--flexkv-config-file",
})  # fmt: skip
"""Flags a spec's `extra_args` may not hold."""

SECRET_PLACES = frozenset({names.ENV_REPLICA_KEY_FILE, *REDIS_FROM_ENVIRONMENT.values()})
"""Variables no engine has a use for."""
LISTENER_PLACES = frozenset({"SGLANG_GRPC_PORT"})
"""Variables that open what `KEYS_AND_DOORS` keeps shut."""
TIER_PLACES = frozenset({names.ENV_TIER_KEY_FILE, *map(names.tier_variable, REDIS_FROM_ENVIRONMENT.values())})
"""Variables that an engine with a shared cache has a use for."""
WAIT_S_PER_KI_TOKEN = 0.25
"""How much longer a request may wait for each 1,024 of its tokens that a shared cache is asked for."""


def to_argv(
    spec: EngineSpec, rank: GroupRank, *, host: str, port: int, config_file: Path, python: str = sys.executable
) -> tuple[str, ...]:
    """The engine's command line. Raises HanmaruError (CONFIGURATION) when `extra_args` hold a reserved flag."""
    refuse_reserved(spec.extra_args, KEYS_AND_DOORS)
    flags: list[str] = ["--config", str(config_file), "--model-path", spec.checkpoint]
    flags += ["--served-model-name", spec.route, "--host", host, "--port", str(port)]
    flags += ["--device", spec.device.value, "--dtype", spec.dtype, "--context-length", str(spec.context_tokens)]
    # safetensors only: any other format may be a pickle.
    flags += ["--load-format", "safetensors"]
    flags += _parallel_flags(spec, rank)
    flags += _memory_flags(spec)
    flags += shared_cache_flags(spec)
    flags += _speculative_flags(spec.draft_tokens)
    flags += _parser_flags(spec)
    flags += _trace_flags(spec.trace_endpoint)
    # The supervisor's first token is the warm-up. An idle engine sleeps: an idle worker may use 5 % of a core.
    flags += ["--skip-server-warmup", "--sleep-on-idle", "--enable-metrics", "--enable-cache-report"]
    # At "info" SGLang writes all its arguments into its log, both keys among them (seen in 0.5.23).
    flags += ["--constrained-json-disable-any-whitespace", "--log-level", "warning"]
    return (python, "-m", "sglang.launch_server", *flags, *spec.extra_args)


def to_environment(
    spec: EngineSpec,
    rank: GroupRank,
    *,
    host: str,
    scratch: Path,
    cpus: Sequence[int],
    inherited: Mapping[str, str],
    peers: Sequence[str] = (),
) -> dict[str, str]:
    """All variables of the engine's process. `scratch` is a private folder; `cpus` are those it may run on.

    `peers` are the addresses of the group's ranks, whose messages are unpickled; empty: everybody's are.
    """
    kept_back = SECRET_PLACES | LISTENER_PLACES
    if spec.shared_cache is None:
        kept_back |= TIER_PLACES
    environment = {name: value for name, value in inherited.items() if name not in kept_back}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # A health check that generates may take as long as the supervisor is patient.
        "SGLANG_HEALTH_CHECK_TIMEOUT": str(max(1, int(spec.hang_timeout_s))),
        # How often it looks whether the caller of an answer that is not streamed is still there; 4 s by default.
        "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",
        # Our list of models, with SGLang's own behind it: two seconds of a start.
        "SGLANG_EXTERNAL_MODEL_PACKAGE": "hanmaru_worker.plugin.models",
    }
    if rank.size == 1:
        # Ranks of one machine meet in a file: torch's own rendezvous would listen on every interface.
        environment["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{scratch}/rendezvous"
    if peers:
        # Addresses, not names: SGLang compares each connection's with these. Its own processes talk over loopback too.
        environment["SGLANG_ZMQ_ALLOWED_PEERS"] = ",".join(dict.fromkeys(("127.0.0.1", "::1", host, *peers)))
    if rank.size == 1 or is_loopback(host):
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    if spec.parallelism.expert > 1:
        environment = {**_EXPERT_DEFAULTS, **environment}
    if spec.trace_endpoint is not None:
        environment = {**_TRACE_DEFAULTS, **environment}
    if spec.device is Device.CPU:
        environment |= _cpu_environment(spec, rank, cpus, inherited)
    return environment


_TRACE_DEFAULTS = {
    # Only what a gateway recorded: else every probe and every request without a traceparent begins a trace of its own.
    "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    # Seven spans a request; the engine's default adds one for every decode step (both seen in 0.5.23).
    "SGLANG_TRACE_LEVEL": "1",
}
"""What the worker's own environment may override."""

_EXPERT_DEFAULTS = {
    # Which ranks each layer's tokens went to, once in so many passes: a read of layers x ranks numbers of a device.
    "SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL": "100",
}
"""The same, for expert parallel."""


def trace_address(endpoint: str) -> str:
    """`host:port` of an OTLP endpoint: the engine takes no scheme."""
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    if not parts.hostname or parts.port is None:
        raise _wrong(f"traceEndpoint={endpoint!r} has no host and port; expected http://host:4317")
    return f"{parts.hostname}:{parts.port}"


def _parallel_flags(spec: EngineSpec, rank: GroupRank) -> list[str]:
    sizes = spec.parallelism
    flags = ["--tp-size", str(sizes.tensor)]
    for flag, size in (("--ep-size", sizes.expert), ("--pp-size", sizes.pipeline), ("--attn-dp-size", sizes.data)):
        if size > 1:
            flags += [flag, str(size)]
    if sizes.expert > 1:
        flags += ["--expert-balancedness-report-mode", "prometheus"]
    if rank.size > 1:
        assert rank.address is not None
        flags += ["--nnodes", str(rank.size), "--node-rank", str(rank.index), "--dist-init-addr", rank.address]
    return flags


def _memory_flags(spec: EngineSpec) -> list[str]:
    cache = spec.kv_cache
    flags = ["--page-size", str(cache.page_size), *([] if cache.hybrid else ["--disable-hybrid-swa-memory"])]
    for flag, value in (
        ("--max-total-tokens", cache.max_total_tokens),
        ("--mem-fraction-static", cache.memory_fraction),
        ("--swa-full-tokens-ratio", cache.sliding_tokens_ratio),
    ):
        if value is not None:
            flags += [flag, str(value)]
    flags += ["--max-running-requests", str(spec.max_running_requests)]
    return [*flags, "--chunked-prefill-size", str(spec.prefill_chunk_tokens)]


def shared_cache_flags(spec: EngineSpec) -> list[str]:
    """HiCache with our storage behind it. Secrets and ways are not here: the storage reads them by `TIER_PLACES`."""
    tier = spec.shared_cache
    if tier is None:
        return []
    told = {
        # SGLang's: which class it makes, and how it calls it.
        "backend_name": "hanmaru_redis",
        "module_path": "hanmaru_worker.plugin.tier.storage",
        "class_name": "TierStorage",
        "interface_v1": 1,
        "hicache_storage_pass_prefix_keys": True,
        "prefetch_threshold": tier.min_prefix_tokens,
        "prefetch_timeout_base": tier.wait_s,
        "prefetch_timeout_per_ki_token": WAIT_S_PER_KI_TOKEN,
        # Ours.
        "model": spec.model.id,
        "checkpoint": spec.checkpoint,
        "variant": _variant(spec),
        "max_bytes": tier.max_bytes,
        "life_s": tier.life_s,
        "max_prefix_tokens": tier.max_prefix_tokens,
    }
    return [
        "--enable-hierarchical-cache",
        "--hicache-size",
        str(tier.host_gb),
        # Whatever is computed once is written: a worker that starts finds it. What is never read again lapses.
        "--hicache-write-policy",
        "write_through",
        "--hicache-storage-prefetch-policy",
        "timeout",
        # A prompt is looked for once. By default a miss in a queue is asked again up to 8 times, in every rank.
        "--hicache-storage-prefetch-retry-poll-interval",
        "0",
        "--hicache-storage-backend",
        "dynamic",
        "--hicache-storage-backend-extra-config",
        json.dumps(told),
    ]


def _variant(spec: EngineSpec) -> str:
    """What besides the weights decides what a page holds, as far as the worker can see it."""
    told = [spec.dtype, spec.kv_cache.hybrid, spec.draft_tokens is not None, spec.device, *spec.extra_args]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _speculative_flags(draft_tokens: int | None) -> list[str]:
    """SGLang calls the model's own MTP block EAGLE; a chain of n drafts is verified with one token more."""
    if draft_tokens is None:
        return []
    flags = ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(draft_tokens)]
    return [*flags, "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(draft_tokens + 1)]


def _parser_flags(spec: EngineSpec) -> list[str]:
    parsers = (("--reasoning-parser", spec.reasoning_parser), ("--tool-call-parser", spec.tool_call_parser))
    return [part for flag, parser in parsers if parser is not None for part in (flag, parser)]


def _trace_flags(endpoint: str | None) -> list[str]:
    return [] if endpoint is None else ["--enable-trace", "--otlp-traces-endpoint", trace_address(endpoint)]


def _cpu_environment(
    spec: EngineSpec, rank: GroupRank, cpus: Sequence[int], inherited: Mapping[str, str]
) -> dict[str, str]:
    environment = {
        "SGLANG_PLATFORM": CPU_PLATFORM,
        # Measured on two cores, November 2026: 0.5 token/s instead of 80 without the first, 25 s instead of 0.8 s for
        # the first request without the second.
        "OMP_NUM_THREADS": inherited.get("OMP_NUM_THREADS", "1"),
        "TORCHDYNAMO_DISABLE": "1",
    }
    ranks = spec.parallelism.ranks
    if ranks > 1:
        # SGLang wants a set of cores for each rank when there are more ranks than NUMA nodes. Ranks of one machine
        # take turns; several workers of a group on one machine begin at different cores.
        first = rank.index * (ranks // rank.size)
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cpus[(first + n) % len(cpus)]) for n in range(ranks))
    return environment


def refuse_reserved(extra_args: Sequence[str], reserved_flags: Collection[str]) -> None:
    """Raises HanmaruError (CONFIGURATION) when one of them is, or begins, a reserved flag."""
    for argument in extra_args:
        flag = argument.partition("=")[0].replace("_", "-")
        # argparse takes any unambiguous beginning of a flag for the flag.
        if flag.startswith("--") and any(reserved.startswith(flag) for reserved in reserved_flags):
            raise _wrong(f"extraArgs hold {argument!r}: that flag is decided by the worker; remove it")


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
