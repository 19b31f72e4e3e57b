"""Two ranks over gloo, each with half of the experts: idle ones sleep, they answer as one would, and say who worked.

Pages of 16 tokens, unlike `test_engine_matrix.py`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.reference import Reference

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
IDLE_SHARE = 0.05
IDLE_SECONDS = 10.0
RANKS = 2
_LAYER_TOKENS = re.compile(r'^sglang:eplb_gpu_physical_count_bucket\{layer="(\d+)",le="([^"]+)"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def two_ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--page-size", "16"]
    flags += ["--tp-size", str(RANKS), "--ep-size", str(RANKS)]
    flags += ["--max-total-tokens", "4096", "--max-running-requests", "4", "--chunked-prefill-size", "256"]
    flags += ["--enable-metrics", "--expert-balancedness-report-mode", "prometheus"]
    # Both ranks would otherwise bind to every core of the one NUMA node.
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL": "1"}
    log_path = tmp_path_factory.mktemp("ranks") / "engine.log"
    with running_engine(checkpoint, flags, log_path=log_path, environment=environment) as engine:
        yield engine


def test_every_rank_of_an_idle_engine_sleeps(two_ranks: Engine) -> None:
    """Upstream's idle sleeper exists on rank 0 alone; the others wait for it in a blocking broadcast."""
    shares = two_ranks.cpu_shares(IDLE_SECONDS)
    assert sum("scheduler" in name for name in shares) == 2, shares
    assert max(shares.values()) <= IDLE_SHARE, shares


def test_two_ranks_answer_as_one(two_ranks: Engine, reference: Reference) -> None:
    source = random.Random(17)
    shared = [source.randrange(64, reference.vocabulary) for _ in range(600)]
    for length in (1, 127, 129, 300, 600, 600):  # each a prefix of the next, the last one cached but for a page
        prompt = shared[:length]
        sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": -1}
        answer = two_ranks.generate(body)
        found = reference.agreement(prompt, answer)
        assert found.output_error < BOUND, f"{length} tokens: {found}"
        assert found.divergences == found.ties, f"{length} tokens: {found}"
    assert answer["meta_info"]["cached_tokens"] >= 512


def test_metrics_tell_how_evenly_the_ranks_experts_were_used(two_ranks: Engine, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    before = layer_tokens(two_ranks)
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    two_ranks.generate({"input_ids": [random.Random(5).randrange(64, 3000)] * 100, "sampling_params": sampling})
    after = layer_tokens(two_ranks)

    # 107 tokens go through the layers: the last one is only told. Upstream counts on each rank and adds up.
    told = RANKS * 107 * config["num_experts_per_tok"]
    taken = {layer: sum(after[layer]) - sum(before[layer]) for layer in after}
    assert taken == {layer: told * is_sparse for layer, is_sparse in enumerate(config["is_moe_layer"])}
    assert all(len(ranks) == RANKS for ranks in after.values())
    evenness = two_ranks.metric("sglang:eplb_balancedness_sum") / two_ranks.metric("sglang:eplb_balancedness_count")
    assert 1 / RANKS < evenness <= 1


def layer_tokens(engine: Engine) -> dict[int, list[float]]:
    """For each layer how many choices fell on each rank's experts; the metric's buckets are ranks."""
    buckets: dict[int, dict[float, float]] = {}
    for layer, rank, value in _LAYER_TOKENS.findall(engine.get("/metrics")):
        buckets.setdefault(int(layer), {})[float(rank)] = float(value)
    sums = {
        layer: [counts[rank] for rank in sorted(counts) if rank != float("inf")] for layer, counts in buckets.items()
    }
    return {
        layer: [end - start for start, end in zip([0.0, *ends], ends, strict=False)] for layer, ends in sums.items()
    }
