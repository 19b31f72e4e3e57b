"""The command lines and readings of the benchmark that runs SGLang on GPUs; the engine itself has never run there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts.wire.engine_spec import EngineSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "engine_gpu"))

import planned
import readings
from planned import VARIANTS, Machine, Variant

PROGRAM = Path(__file__).parents[2] / "bench" / "engine_gpu" / "served.py"


@pytest.fixture(scope="module")
def spec() -> EngineSpec:
    return planned.planned_spec()


def machine(**changes: Any) -> Machine:
    given = {"gpus": 8, "checkpoint": "/model", "has_random_weights": False, "port": 30000, "keys_file": Path("/k")}
    return Machine(**given | changes)


def command(spec: EngineSpec, variant: Variant, place: Machine) -> str:
    return " ".join(planned.command(planned.fitted(spec, place), variant, place))


def test_the_first_line_is_the_a100_pools_own(spec: EngineSpec) -> None:
    found = command(spec, VARIANTS[0], machine())
    for flags in (
        "--device cuda --dtype bfloat16 --context-length 262144 --load-format safetensors --tp-size 8",
        "--page-size 16",
        "--speculative-algorithm EAGLE --speculative-num-steps 3",
        "--config /k --model-path /model",
    ):
        assert flags in found
    assert "--attention-backend" not in found
    assert "--disable-hybrid-swa-memory" not in found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_differs_in_what_it_is_named_for_alone(spec: EngineSpec, variant: Variant) -> None:
    first = command(spec, VARIANTS[0], machine()).split()
    own = command(spec, variant, machine()).split()
    is_speculative = [part for part in own if part.startswith("--speculative")]
    assert bool(is_speculative) == variant.mtp
    assert ("--disable-hybrid-swa-memory" in own) == (not variant.hybrid)
    differing = set(first) ^ set(own)
    allowed = {"--disable-hybrid-swa-memory", "--attention-backend", variant.attention_backend, "EAGLE", "1", "3", "4"}
    assert {part for part in differing if not part.startswith("--speculative")} <= allowed


def test_one_gpu_and_random_weights_change_the_tensor_group_and_the_weights_alone(spec: EngineSpec) -> None:
    first = command(spec, VARIANTS[0], machine())
    found = command(spec, VARIANTS[0], machine(gpus=1, has_random_weights=True))
    assert "--tp-size 1 " in found
    assert "--load-format dummy" in found
    assert found.endswith("--skip-tokenizer-init")
    assert "parser" not in found
    kept = ("--page-size", "--mem-fraction-static", "--swa-full-tokens-ratio", "--max-running-requests", "--dtype")
    for flag in kept:
        assert found.split(flag)[1].split()[0] == first.split(flag)[1].split()[0]


def test_a_smaller_shape_is_k_exaones_in_all_but_depth_and_experts() -> None:
    config = planned.random_shape(8, 4)
    assert config["num_hidden_layers"] == len(config["layer_types"]) == len(config["is_moe_layer"]) == 8
    assert (config["num_experts"], config["num_experts_per_tok"]) == (4, 4)
    whole = planned.random_shape(48, 128)
    unlike = {name for name in whole if whole[name] != config[name]}
    assert unlike == {"num_hidden_layers", "layer_types", "is_moe_layer", "num_experts", "num_experts_per_tok"}
    with pytest.raises(ValueError, match="layers=6 is not a multiple of 4"):
        planned.random_shape(6, 8)


def answer(made: int, **more: int) -> dict[str, Any]:
    return {"meta_info": {"completion_tokens": made, "prompt_tokens": 1000, "cached_tokens": 990, **more}}


def measured(name: str, gb: float, full: int, sliding: int, seconds: float, **more: int) -> readings.Measured:
    memory = {"kvcache": gb, "token_capacity": full, "token_capacity_swa": sliding or None}
    pools = readings.read_pools({"internal_states": [{"memory_usage": memory}]})
    shots = [readings.read_shot([answer(100, **more)] * 2, taken) for taken in (seconds, seconds, 90 * seconds)]
    return readings.Measured(name, pools, {2: shots})


def test_ratios_come_from_pools_and_medians_and_only_from_engines_that_started() -> None:
    hybrid = measured("planned, no MTP", 10, 1000, 200, 2.0)
    full = measured("full KV, no MTP", 10, 250, 0, 2.0)
    drafting = measured("planned", 10, 1000, 300, 1.0, spec_verify_ct=40)
    assert readings.ratios([hybrid, full, drafting]) == {
        "kv_bytes_ratio": 0.25,
        "hybrid_speedup_b2": 1.0,
        "mtp_speedup_b2": 2.0,
    }
    assert readings.ratios([drafting]) == {}
    assert drafting.median(2, "tokens_per_step") == 2.5
    assert drafting.summary == {
        "name": "planned",
        "full_tokens": 1000,
        "sliding_tokens": 300,
        "decode": {"2": {"tokens_per_s": 200.0, "tokens_per_step": 2.5}},
    }
    head = readings.table_rows(None)[0]
    assert all(row.count("|") == head.count("|") for row in readings.table_rows(hybrid))


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROGRAM), *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_its_command_lines_can_be_read_without_a_gpu() -> None:
    found = run("--print-commands")
    assert found.returncode == 0, found.stderr
    lines = [line for line in found.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) == len(VARIANTS)
    assert all("-m sglang.launch_server" in line and "--tp-size 8" in line for line in lines)


def test_without_a_gpu_it_says_so_and_what_to_do() -> None:
    found = run()
    if "no GPU" not in found.stderr:
        pytest.skip("there is a GPU")
    assert found.returncode == 2
    assert "--print-commands" in found.stderr
