"""The benchmark for GPUs, run on a CPU: that it can find what is wrong, and that it says what it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hanmaru_operator.plan.memory import Demand

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "engine_gpu"))

import decode_timing as timing
from two_pools import Pools, Request, Shape, next_pass, sliding_slots_needed

PROGRAM = Path(__file__).parents[2] / "bench" / "engine_gpu" / "ops.py"

pytestmark = pytest.mark.timeout(300)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """In a Python of its own in which the engine and the project's other needs cannot be imported."""
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("sglang", "pydantic", "msgspec", "hanmaru_contracts", "hanmaru_operator")))
sys.argv = {["ops.py", *flags]!r}
sys.path.insert(0, {str(PROGRAM.parent)!r})
runpy.run_path({str(PROGRAM)!r}, run_name="__main__")
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)


def test_all_of_it_on_small_sizes_and_without_the_engine() -> None:
    found = run("--device", "cpu", "--quick")
    assert found.returncode == 0, found.stdout + found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["is_right"]
    errors = told["logprob_errors"]
    assert max(errors[f"{way} float32"]["largest"] for way in ("hybrid", "full")) < 1e-4
    assert errors["a window of 129"]["largest"] > 1e-2, "the comparison notices a window of one token more"
    assert told["mtp"]["divergences"] == 0
    assert told["mtp"]["tokens_per_step"] > 2
    assert told["mtp"]["sampling_deviation"] < 5
    for point in told["decode"]:
        assert point["kv_bytes_ratio"] < 1
        assert point["sequences_in_same_memory"] >= point["batch"]
        assert all(ms > 0 for ms in point["step_ms"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_what_to_do() -> None:
    found = run()
    assert found.returncode == 2
    assert "no GPU" in found.stderr
    assert "--device cpu" in found.stderr


@pytest.mark.parametrize("drafts", [0, 3])
def test_its_sliding_pool_is_the_planners(drafts: int) -> None:
    verified = drafts + 1
    demand = Demand(window=128, page_size=1, draft_tokens=verified, chunk_tokens=2048, kept_tails=0)
    assert sliding_slots_needed(128, 16, verified_tokens=verified, chunk_tokens=2048) == demand.tokens(16)


@pytest.mark.parametrize(("context", "ratio"), [(8192, 0.297), (32_768, 0.262)])
def test_what_two_pools_take_at_k_exaones_widths_is_what_the_page_says(context: int, ratio: float) -> None:
    shape, point = timing.Stack().shape(torch.bfloat16, torch.device("cpu")), timing.Point(context, 16)
    hybrid, full = (timing.pool_bytes(shape, point, way) for way in timing.WAYS)
    assert hybrid / full == pytest.approx(ratio, abs=5e-4)


def test_so_many_sequences_fit_in_the_memory_of_sixteen() -> None:
    shape = timing.Stack().shape(torch.bfloat16, torch.device("cpu"))
    assert timing.batch_in(shape, 8192, timing.pool_bytes(shape, timing.Point(8192, 16), "full")) == 57


def small_pools(**changes: Any) -> Pools:
    shape = Shape((True, False), 1, 4, window=4, dtype=torch.float32, device=torch.device("cpu"))
    given = {"full_slots": 600, "sliding_slots": 300, "requests": 2, "context": 600, "poison": True}
    return Pools(shape, **given | changes)


def test_slots_behind_the_window_and_of_refused_drafts_are_somebody_elses() -> None:
    pools, request = small_pools(), Request(0)
    for _ in range(140):
        next_pass(pools, [request], [4])
        pools.cut(request, request.tokens - 1)
    held = pools.to_sliding[pools.table[0, : request.tokens].to(torch.int64)]
    assert request.given_back >= 420 - 3 - 128 - 4
    assert not held[: request.given_back].any(), "given back: they lead to nobody's slot"
    live = held[request.given_back :]
    assert len(live.unique()) == len(live)
    assert live.all()
    pools.cut(request, 0)
    assert request == Request(0)
    for free in (pools._full_free, pools._sliding_free):
        assert free is not None
        assert len(free.unique()) == len(free), "no slot is free twice"
    assert (len(pools._full_free), len(pools._sliding_free)) == (600, 300)


def test_a_slot_in_nobodys_hands_reads_as_nan() -> None:
    pools, request = small_pools(), Request(0)
    current = next_pass(pools, [request], [3])
    ones = torch.ones(3, 1, 4)
    assert torch.equal(current.attend(0, ones, ones, ones, 1.0), ones)
    current = next_pass(pools, [request], [1])
    current.starts[0] += 5
    assert current.attend(0, ones[:1], ones[:1], ones[:1], 1.0).isnan().all()


def test_a_pool_that_is_too_small_says_which_and_by_how_much() -> None:
    with pytest.raises(RuntimeError, match="sliding pool has 3 free slots and 5 are needed"):
        next_pass(small_pools(sliding_slots=3), [Request(0)], [5])
