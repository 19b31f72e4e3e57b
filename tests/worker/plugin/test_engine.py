"""A real engine with hybrid KV against transformers and against the full-KV configuration, float32 throughout.

The hybrid engine's pools are far smaller than what it is offered, so that slots change hands all the time: that
is when a location of the wrong pool, or a key outside the window, becomes another request's key.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.reference import Reference

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
WINDOW = 128
OUTPUT_TOKENS = 16
IDLE_SHARE = 0.05
IDLE_SECONDS = 10.0
LENGTHS = [1, 2, 3, 17, 64, 100, 110, 126, 127, 128, 129, 130, 192, 254, 255, 256, 257, 258, 383, 384, 511, 512, 513]
LENGTHS += [777, 1024, 1025, 1500, 2000]

FULL_POOL_TOKENS = 5120
SLIDING_POOL_TOKENS = 2048
COMMON = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--enable-metrics", "--random-seed", "1"]
COMMON += ["--max-running-requests", "8", "--chunked-prefill-size", "256"]


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: list[int]
    prefix: int
    """Which shared prefix it begins with."""


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Iterator[Reference]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Reference(checkpoint)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hybrid(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    ratio = SLIDING_POOL_TOKENS / FULL_POOL_TOKENS
    flags = ["--max-total-tokens", str(FULL_POOL_TOKENS), "--swa-full-tokens-ratio", str(ratio)]
    log_path = tmp_path_factory.mktemp("hybrid") / "engine.log"
    with running_engine(checkpoint, COMMON + flags, log_path=log_path) as engine:
        yield engine


@pytest.fixture(scope="module")
def pressure_prompts(reference: Reference) -> list[Prompt]:
    """Thirty prompts on six shared prefixes, together several times what either pool holds."""
    source = random.Random(11)
    prompts = []
    for prefix, length in enumerate([60, 130, 300, 700, 1100, 1500]):
        shared = tokens(source, reference, length)
        prompts += [Prompt(shared + tokens(source, reference, more), prefix) for more in (1, 40, 127, 129, 260)]
    return prompts


def tokens(source: random.Random, reference: Reference, count: int) -> list[int]:
    return [source.randrange(64, reference.vocabulary) for _ in range(count)]


def ask(engine: Engine, prompt: Sequence[int], *, with_prompt: bool) -> Any:
    """Greedy, with log-probabilities; asking for the prompt's own keeps the engine from using its prefix cache."""
    return engine.generate(
        {
            "input_ids": list(prompt),
            "sampling_params": {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": 0 if with_prompt else -1,
        }
    )


def ask_all(engine: Engine, prompts: Sequence[Prompt], order: Sequence[int]) -> list[Any]:
    """All at once, in `order`; the answers by index of the prompt."""
    answers: list[Any] = [None] * len(prompts)
    with ThreadPoolExecutor(16) as pool:
        asked = [(index, pool.submit(ask, engine, prompts[index].tokens, with_prompt=False)) for index in order]
        for index, answer in asked:
            answers[index] = answer.result()
    return answers


def test_every_prompt_and_decode_position_agrees_with_transformers(hybrid: Engine, reference: Reference) -> None:
    source = random.Random(3)
    prompts = [tokens(source, reference, length) for length in LENGTHS]
    ties = 0
    for prompt in prompts:
        answer = ask(hybrid, prompt, with_prompt=True)
        assert len(answer["meta_info"]["input_token_logprobs"]) == len(prompt)
        assert len(answer["output_ids"]) == OUTPUT_TOKENS
        found = reference.agreement(prompt, answer)
        assert found.prompt_error < BOUND, f"{len(prompt)} tokens, prefill: {found}"
        assert found.output_error < BOUND, f"{len(prompt)} tokens, decode: {found}"
        assert found.divergences == found.ties, f"{len(prompt)} tokens, greedy: {found}"
        ties += found.ties
    print(f"{len(prompts)} prompts, {ties} greedy divergences excused by ties")
    assert ties <= 2


def test_a_window_of_129_would_have_been_noticed(reference: Reference) -> None:
    """The comparison's own control: what upstream's layers compute differs from the 129th position on, not before."""
    prompt = tokens(random.Random(5), reference, 400)
    right = torch.log_softmax(reference.logits(prompt), -1)
    wrong = torch.log_softmax(reference.logits(prompt, sliding_window=WINDOW + 1), -1)
    error = (right - wrong).abs().amax(-1)
    assert float(error[:WINDOW].max()) < BOUND
    assert float(error[WINDOW:].max()) > 10 * BOUND


def test_an_idle_engine_leaves_the_machine_alone(hybrid: Engine) -> None:
    shares = hybrid.cpu_shares(IDLE_SECONDS)
    assert max(shares.values()) <= IDLE_SHARE, shares


def test_answers_under_pressure_are_those_of_transformers_and_of_full_kv(
    hybrid: Engine,
    checkpoint: Path,
    reference: Reference,
    pressure_prompts: list[Prompt],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    evicted_before = hybrid.metric("sglang:evicted_tokens_total")
    order = list(range(len(pressure_prompts)))
    rounds = []
    for seed in (1, 2):
        random.Random(seed).shuffle(order)
        rounds.append(ask_all(hybrid, pressure_prompts, order))

    offered = sum(len(prompt.tokens) + OUTPUT_TOKENS for prompt in pressure_prompts)
    assert offered > 4 * FULL_POOL_TOKENS
    assert hybrid.metric("sglang:evicted_tokens_total") - evicted_before > FULL_POOL_TOKENS
    # What is left cached: whole prefixes in the one pool, only their tails in the other.
    cached_full, cached_sliding = (hybrid.metric(f"sglang:{pool}_evictable_tokens") for pool in ("kv", "swa"))
    assert 0 < cached_sliding <= SLIDING_POOL_TOKENS < cached_full
    hits = [answer["meta_info"]["cached_tokens"] for answers in rounds for answer in answers]
    assert sum(hit > WINDOW for hit in hits) >= 5, "prefixes were found again after sliding evictions"

    flags = ["--disable-hybrid-swa-memory", "--disable-radix-cache", "--max-total-tokens", "32768"]
    log_path = tmp_path_factory.mktemp("full") / "engine.log"
    with running_engine(checkpoint, COMMON + flags, log_path=log_path) as full:
        assert "Use sliding window memory pool" not in full.log()
        plain = ask_all(full, pressure_prompts, range(len(pressure_prompts)))
    assert "Use sliding window memory pool" in hybrid.log()

    ties = 0
    for index, prompt in enumerate(pressure_prompts):
        for run, answer in {"full": plain[index], "first": rounds[0][index], "second": rounds[1][index]}.items():
            found = reference.agreement(prompt.tokens, answer)
            where = f"{run} run, prefix {prompt.prefix}, {len(prompt.tokens)} tokens: {found}"
            assert found.output_error < BOUND, where
            assert found.divergences == found.ties, where
            ties += found.ties
    print(f"{3 * len(pressure_prompts)} answers, {ties} greedy divergences excused by ties; cached {hits}")
    assert ties <= 6
