"""Two ranks over gloo: idle ones sleep, and they answer as one would. Pages of 16 tokens, unlike `test_engine.py`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.reference import Reference

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
IDLE_SHARE = 0.05
IDLE_SECONDS = 10.0


@pytest.fixture(scope="module")
def two_ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--tp-size", "2", "--page-size", "16"]
    flags += ["--max-total-tokens", "4096", "--max-running-requests", "4", "--chunked-prefill-size", "256"]
    # Both ranks would otherwise bind to every core of the one NUMA node.
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    log_path = tmp_path_factory.mktemp("ranks") / "engine.log"
    with running_engine(checkpoint, flags, log_path=log_path, environment=environment) as engine:
        yield engine


def test_every_rank_of_an_idle_engine_sleeps(two_ranks: Engine) -> None:
    """Upstream's idle sleeper exists on rank 0 alone; the others wait for it in a blocking broadcast."""
    shares = two_ranks.cpu_shares(IDLE_SECONDS)
    assert sum("scheduler" in name for name in shares) == 2, shares
    assert max(shares.values()) <= IDLE_SHARE, shares


def test_two_ranks_answer_as_one(two_ranks: Engine, checkpoint: Path) -> None:
    reference = Reference(checkpoint)
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
