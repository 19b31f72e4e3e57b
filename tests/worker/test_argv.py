from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, KvCache, Parallelism, SharedCache
from hanmaru_worker.argv import KEYS_AND_DOORS, to_argv, to_environment, trace_address
from hanmaru_worker.settings import GroupRank
from hypothesis import given
from hypothesis import strategies as st

ALONE = GroupRank()
CONFIG = Path("/private/keys.yaml")


def spec(**fields: Any) -> EngineSpec:
    model = ModelRef(namespace="team", name="exaone")
    return EngineSpec(**{"model": model, "route": "exaone", "checkpoint": "/models/x", "context_tokens": 4096} | fields)


def flags(subject: EngineSpec, rank: GroupRank = ALONE) -> list[str]:
    return list(to_argv(subject, rank, host="127.0.0.1", port=30000, config_file=CONFIG, python="python"))


def value(argv: list[str], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None


def environment(
    subject: EngineSpec, rank: GroupRank = ALONE, host: str = "127.0.0.1", **inherited: str
) -> dict[str, str]:
    return to_environment(subject, rank, host=host, scratch=Path("/private"), cpus=(0, 1), inherited=inherited)


def test_the_whole_command_line_of_the_laptops_worker() -> None:
    cache = KvCache(page_size=16, max_total_tokens=8192, sliding_tokens_ratio=0.5)
    argv = flags(spec(dtype="float32", kv_cache=cache))
    assert argv == [
        *("python", "-m", "sglang.launch_server", "--config", "/private/keys.yaml", "--model-path", "/models/x"),
        *("--served-model-name", "exaone", "--host", "127.0.0.1", "--port", "30000"),
        *("--device", "cpu", "--dtype", "float32", "--context-length", "4096", "--load-format", "safetensors"),
        *("--tp-size", "1", "--page-size", "16", "--max-total-tokens", "8192", "--swa-full-tokens-ratio", "0.5"),
        *("--max-running-requests", "16", "--chunked-prefill-size", "2048"),
        *("--reasoning-parser", "qwen3", "--tool-call-parser", "hermes"),
        *("--skip-server-warmup", "--sleep-on-idle", "--enable-metrics", "--enable-cache-report"),
        *("--constrained-json-disable-any-whitespace", "--log-level", "warning"),
    ]


@pytest.mark.parametrize(
    ("fields", "flag", "expected"),
    [
        ({"device": Device.CUDA}, "--device", "cuda"),
        ({"parallelism": Parallelism(tensor=8, expert=4)}, "--tp-size", "8"),
        ({"parallelism": Parallelism(tensor=8, expert=4)}, "--ep-size", "4"),
        ({"parallelism": Parallelism(tensor=8, expert=4)}, "--expert-balancedness-report-mode", "prometheus"),
        ({"parallelism": Parallelism(tensor=8)}, "--expert-balancedness-report-mode", None),
        ({"parallelism": Parallelism(pipeline=2)}, "--pp-size", "2"),
        ({"parallelism": Parallelism(tensor=4, data=2)}, "--attn-dp-size", "2"),
        ({"draft_tokens": 3}, "--speculative-algorithm", "EAGLE"),
        ({"draft_tokens": 3}, "--speculative-num-steps", "3"),
        ({"draft_tokens": 3}, "--speculative-eagle-topk", "1"),
        ({"draft_tokens": 3}, "--speculative-num-draft-tokens", "4"),
        ({}, "--speculative-algorithm", None),
        ({"kv_cache": KvCache(memory_fraction=0.85)}, "--mem-fraction-static", "0.85"),
        ({"prefill_chunk_tokens": 512}, "--chunked-prefill-size", "512"),
        ({"max_running_requests": 3}, "--max-running-requests", "3"),
        ({"trace_endpoint": "http://collector:4317"}, "--otlp-traces-endpoint", "collector:4317"),
        ({"reasoning_parser": None}, "--reasoning-parser", None),
        ({"tool_call_parser": None}, "--tool-call-parser", None),
        ({}, "--enable-trace", None),
        ({}, "--trust-remote-code", None),
        ({}, "--nnodes", None),
    ],
)
def test_each_field_has_its_flag(fields: dict[str, Any], flag: str, expected: str | None) -> None:
    assert value(flags(spec(**fields)), flag) == expected


@pytest.mark.parametrize("hybrid", [True, False])
def test_one_pool_for_all_layers_is_asked_for_by_flag(hybrid: bool) -> None:
    assert ("--disable-hybrid-swa-memory" in flags(spec(kv_cache=KvCache(hybrid=hybrid)))) is not hybrid


def test_copies_of_the_attention_layers_add_no_ranks_to_bind() -> None:
    found = environment(spec(parallelism=Parallelism(tensor=2, data=2)))
    assert found["SGLANG_CPU_OMP_THREADS_BIND"] == "0|1"


def test_ranks_with_different_experts_say_how_many_tokens_each_took_once_in_a_hundred_passes() -> None:
    variable = "SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL"
    parallel = spec(parallelism=Parallelism(tensor=2, expert=2))
    assert environment(parallel)[variable] == "100"
    assert environment(parallel, **{variable: "1"})[variable] == "1"
    assert variable not in environment(spec(parallelism=Parallelism(tensor=2)))


def test_a_rank_of_a_group_says_where_rank_0_waits() -> None:
    argv = flags(spec(parallelism=Parallelism(tensor=2)), GroupRank(1, 2, "rank-0.group:20000"))
    found = [value(argv, flag) for flag in ("--nnodes", "--node-rank", "--dist-init-addr")]
    assert found == ["2", "1", "rank-0.group:20000"]


def test_a_shared_cache_is_our_storage_behind_hicache() -> None:
    argv = flags(spec(shared_cache=SharedCache(max_bytes=1000, life_s=60, max_prefix_tokens=512, host_gb=3)))
    assert "--enable-hierarchical-cache" in argv
    assert value(argv, "--hicache-size") == "3"
    assert value(argv, "--hicache-storage-backend") == "dynamic"
    told = json.loads(value(argv, "--hicache-storage-backend-extra-config") or "")
    assert (told["module_path"], told["class_name"]) == ("hanmaru_worker.plugin.tier.storage", "TierStorage")
    assert (told["model"], told["checkpoint"]) == ("team/exaone", "/models/x")
    assert (told["max_bytes"], told["life_s"], told["max_prefix_tokens"]) == (1000, 60, 512)


@pytest.mark.parametrize("context_tokens", [4096, 262_144])
def test_a_stored_prefix_may_be_waited_for_as_long_as_it_takes_on_a_usual_wire(context_tokens: int) -> None:
    """Whatever the context: 16,384 tokens of K-EXAONE take 0.7 s on a wire of 10 Gbit/s that nobody shares."""
    argv = flags(spec(context_tokens=context_tokens, shared_cache=SharedCache(wait_s=0.5)))
    told = json.loads(value(argv, "--hicache-storage-backend-extra-config") or "")
    assert told["prefetch_timeout_base"] + told["prefetch_timeout_per_ki_token"] * 16 == 4.5
    # Else a prompt that missed is looked for up to eight times while it is queued.
    assert value(argv, "--hicache-storage-prefetch-retry-poll-interval") == "0"


def test_without_a_shared_cache_nothing_is_said_of_one() -> None:
    assert not [argument for argument in flags(spec()) if "hicache" in argument or "hierarchical" in argument]


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "float16"},
        {"kv_cache": KvCache(hybrid=False)},
        {"draft_tokens": 3},
        {"device": Device.CUDA},
        {"extra_args": ("--kv-cache-dtype", "fp8_e5m2")},
    ],
    ids=str,
)
def test_what_changes_a_page_changes_the_caches_variant(changed: dict[str, Any]) -> None:
    def variant(**fields: Any) -> object:
        argv = flags(spec(shared_cache=SharedCache(), **fields))
        return json.loads(value(argv, "--hicache-storage-backend-extra-config") or "")["variant"]

    assert variant(**changed) != variant()
    assert variant(max_running_requests=3) == variant()


def test_only_an_engine_with_a_shared_cache_learns_the_way_to_it() -> None:
    told = {
        "HANMARU_TIER_KEY_FILE": "/key",
        "HANMARU_TIER_REDIS_URL": "redis://tier:6379",
        "HANMARU_TIER_REDIS_PASSWORD_FILE": "/password",
        "HANMARU_REDIS_PASSWORD_FILE": "/registrations",
    }
    assert not environment(spec(), **told).keys() & told.keys()
    known = environment(spec(shared_cache=SharedCache()), **told)
    assert known.keys() & told.keys() == told.keys() - {"HANMARU_REDIS_PASSWORD_FILE"}


def test_extra_arguments_come_last_as_they_stand() -> None:
    extra = ("--schedule-policy", "fcfs", "--attention-backend", "triton", "-x=1")
    assert flags(spec(extra_args=extra))[-5:] == list(extra)


@pytest.mark.parametrize(
    "argument",
    [*sorted(KEYS_AND_DOORS), "--api-key=x", "--admin", "--trust-remote", "--trust_remote_code", "--sidecar-a"],
)
def test_extra_arguments_cannot_open_the_engine(argument: str) -> None:
    with pytest.raises(HanmaruError, match="decided by the worker") as refused:
        flags(spec(extra_args=("--schedule-policy", "fcfs", argument)))
    assert refused.value.code is ErrorCode.CONFIGURATION


@given(cut=st.integers(min_value=7, max_value=len("--trust-remote-code")))
def test_no_abbreviation_of_a_reserved_flag_passes(cut: int) -> None:
    with pytest.raises(HanmaruError):
        flags(spec(extra_args=("--trust-remote-code"[:cut],)))


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://127.0.0.1:4317", "127.0.0.1:4317"),
        ("https://otel.svc:443/x", "otel.svc:443"),
        ("host:4317", "host:4317"),
    ],
)
def test_a_trace_endpoint_loses_its_scheme(endpoint: str, address: str) -> None:
    assert trace_address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["http://host", "host", ""])
def test_a_trace_endpoint_without_a_port_is_refused(endpoint: str) -> None:
    with pytest.raises(HanmaruError, match="4317"):
        trace_address(endpoint)


def test_an_engine_alone_meets_its_ranks_without_a_listener_on_other_interfaces() -> None:
    found = environment(spec(), host="10.0.0.7")
    assert found["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] == "file:///private/rendezvous"
    assert found["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(("host", "interface"), [("127.0.0.1", "lo"), ("10.0.0.7", None)])
def test_a_group_stays_on_loopback_only_where_all_of_it_is(host: str, interface: str | None) -> None:
    found = environment(spec(), GroupRank(0, 2, "127.0.0.1:20000"), host=host)
    assert found.get("GLOO_SOCKET_IFNAME") == interface
    assert "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE" not in found


def test_a_groups_engine_hears_its_peers_and_itself_alone() -> None:
    rank = GroupRank(0, 2, "a:20000", ("a", "b"))
    found = to_environment(
        spec(), rank, host="10.0.0.7", scratch=Path("/x"), cpus=(0,), inherited={}, peers=("10.0.0.7", "10.0.0.8")
    )
    assert found["SGLANG_ZMQ_ALLOWED_PEERS"] == "127.0.0.1,::1,10.0.0.7,10.0.0.8"
    assert "SGLANG_ZMQ_ALLOWED_PEERS" not in environment(spec())


def test_only_a_cpu_engine_gets_our_platform() -> None:
    assert environment(spec())["SGLANG_PLATFORM"] == "hanmaru_cpu"
    assert "SGLANG_PLATFORM" not in environment(spec(device=Device.CUDA))
    assert "OMP_NUM_THREADS" not in environment(spec(device=Device.CUDA))


@pytest.mark.parametrize(
    ("rank", "binding"),
    [(ALONE, "0|1"), (GroupRank(0, 2, "h:1"), "0|1"), (GroupRank(1, 2, "h:1"), "1|0")],
)
def test_cpu_ranks_take_turns_on_the_cores(rank: GroupRank, binding: str) -> None:
    found = environment(spec(parallelism=Parallelism(tensor=2)), rank)
    assert found["SGLANG_CPU_OMP_THREADS_BIND"] == binding


def test_the_engine_inherits_everything_but_the_supervisors_secrets_and_listeners() -> None:
    told = {"HANMARU_REPLICA_KEY_FILE": "k", "HANMARU_REDIS_PASSWORD_FILE": "p", "SGLANG_GRPC_PORT": "1"}
    found = environment(spec(), PATH="/bin", HTTP="x", **told)
    assert found["PATH"] == "/bin"
    assert not told.keys() & found.keys()


def test_whoever_starts_the_worker_may_give_a_rank_more_threads() -> None:
    assert environment(spec())["OMP_NUM_THREADS"] == "1"
    assert environment(spec(), OMP_NUM_THREADS="16")["OMP_NUM_THREADS"] == "16"


def test_a_traced_engine_follows_the_gateways_decision_and_keeps_to_a_few_spans() -> None:
    traced = spec(trace_endpoint="http://127.0.0.1:4317")
    found = environment(traced)
    assert found["OTEL_TRACES_SAMPLER"] == "parentbased_always_off"
    assert found["SGLANG_TRACE_LEVEL"] == "1"
    assert environment(traced, SGLANG_TRACE_LEVEL="3")["SGLANG_TRACE_LEVEL"] == "3"
    assert "OTEL_TRACES_SAMPLER" not in environment(spec())
