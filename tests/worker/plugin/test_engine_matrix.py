"""A real engine against transformers in float32, over combinations of its switches that cover every pair of values.

Each combination answers the same random prompts, with pools far smaller than what it is offered. One of them, what
the product runs on one rank, is asked more: every position of prompts around the window's edges, and to be idle.
`make test-engine-full` runs all combinations over more prompts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest
import torch
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.engine_matrix import (
    BOUND,
    FULL_POOL_TOKENS,
    LONGEST_PROMPT,
    NAMES,
    OUTPUT_TOKENS,
    PAIRWISE,
    PRODUCT_ON_ONE_RANK,
    Prompt,
    Switches,
    ask,
    ask_all,
    judge,
    random_prompts,
    to_environment,
    to_flags,
)
from hanmaru_testing.reference import Reference

pytestmark = pytest.mark.timeout(420)

WINDOW = 128
PROMPTS = 40
TIES = 4
"""Greedy divergences excused in one combination's 1,280 tokens."""
IDLE_SHARE = 0.05
IDLE_SECONDS = 10.0
LENGTHS = [1, 2, 3, 17, 64, 100, 110, 126, 127, 128, 129, 130, 192, 254, 255, 256, 257, 258, 383, 384, 511, 512, 513]
LENGTHS += [777, 1024, 1025, 1500, 2000]


@dataclass(frozen=True, slots=True)
class Running:
    engine: Engine
    switches: Switches


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[Prompt]:
    return random_prompts(PROMPTS, reference.vocabulary, seed=11)


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    switches: Switches = request.param
    log_path = tmp_path_factory.mktemp("engine") / "engine.log"
    with running_engine(
        checkpoint, to_flags(switches), log_path=log_path, environment=to_environment(switches)
    ) as engine:
        yield Running(engine, switches)


each_combination = pytest.mark.parametrize("running", PAIRWISE, indirect=True, ids=str)
# The same parameters in all lists: pytest then starts each engine once for all its tests.
on_two_ranks_that_draft = pytest.mark.parametrize("running", PAIRWISE[1:2], indirect=True, ids=str)
as_on_one_rank = pytest.mark.parametrize("running", PAIRWISE[:1], indirect=True, ids=str)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(len(NAMES)), 2)))
def test_every_pair_of_values_occurs_among_the_combinations(first: int, second: int) -> None:
    values = [astuple(switches) for switches in PAIRWISE]
    found = {(row[first], row[second]) for row in values}
    assert found == set(itertools.product((True, False), repeat=2)), f"{NAMES[first]} and {NAMES[second]}: {found}"


def test_prompts_share_prefixes_and_exceed_the_pools() -> None:
    prompts = random_prompts(PROMPTS, 3072, seed=11)
    lengths = [len(prompt.tokens) for prompt in prompts]
    assert (min(lengths), max(lengths), len(prompts)) == (1, LONGEST_PROMPT, PROMPTS)
    assert sum(lengths) > 4 * FULL_POOL_TOKENS
    assert len({prompt.family for prompt in prompts}) < PROMPTS / 3


def test_a_window_of_129_would_have_been_noticed(reference: Reference) -> None:
    """The comparison's own control: what upstream's layers compute differs from the 129th position on, not before."""
    source = random.Random(5)
    prompt = [source.randrange(64, reference.vocabulary) for _ in range(400)]
    right = torch.log_softmax(reference.logits(prompt), -1)
    wrong = torch.log_softmax(reference.logits(prompt, sliding_window=WINDOW + 1), -1)
    error = (right - wrong).abs().amax(-1)
    assert float(error[:WINDOW].max()) < BOUND
    assert float(error[WINDOW:].max()) > 10 * BOUND


@on_two_ranks_that_draft
def test_ranks_that_sample_their_drafts_keep_to_one_text(running: Running, reference: Reference) -> None:
    """A rank that drew, or kept, another token than the first one's would hold the keys of another text."""
    engine, source = running.engine, random.Random(19)
    prompts = [[source.randrange(64, reference.vocabulary) for _ in range(length)] for length in (1, 100, 129, 400)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: ask(engine, prompt, temperature=1), prompts))
    found = [reference.agreement(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    assert max(each.output_error for each in found) < BOUND, found
    assert all(each.divergences for each in found), "nothing was sampled"
    assert sum(answer["meta_info"]["spec_verify_ct"] for answer in answers) < len(answers) * (OUTPUT_TOKENS - 1)


@each_combination
def test_a_combination_answers_under_pressure_as_transformers(
    running: Running, reference: Reference, prompts: list[Prompt]
) -> None:
    engine, switches = running.engine, running.switches
    assert ("SWA KV Cache is allocated" in engine.log()) == switches.hybrid
    outcome = judge(reference, prompts, ask_all(engine, prompts))
    print(f"{switches}: error {outcome.worst_error:.1e}, {outcome.ties} ties, cached {outcome.cached_tokens}")
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.ties <= TIES
    hits = sum(cached > WINDOW for cached in outcome.cached_tokens)
    assert hits >= 2 if switches.prefix_cache else hits == 0
    if switches == PRODUCT_ON_ONE_RANK:
        # What the pressure left: whole prefixes in the one pool, only their ends in the other.
        full, sliding = (engine.metric(f"sglang:{pool}_evictable_tokens") for pool in ("kv", "swa"))
        assert 0 < sliding < full
        assert engine.metric("sglang:evicted_tokens_total") > FULL_POOL_TOKENS


@as_on_one_rank
def test_every_prompt_and_decode_position_agrees_with_transformers(running: Running, reference: Reference) -> None:
    source = random.Random(3)
    lengths = [Prompt([source.randrange(64, reference.vocabulary) for _ in range(length)], -1) for length in LENGTHS]
    ties = 0
    for prompt, answer in zip(lengths, ask_all(running.engine, lengths, with_prompts=True), strict=True):
        assert len(answer["meta_info"]["input_token_logprobs"]) == len(prompt.tokens)
        assert len(answer["output_ids"]) == OUTPUT_TOKENS
        found = reference.agreement(prompt.tokens, answer)
        assert found.prompt_error < BOUND, f"{len(prompt.tokens)} tokens, prefill: {found}"
        assert found.output_error < BOUND, f"{len(prompt.tokens)} tokens, decode: {found}"
        assert found.divergences == found.ties, f"{len(prompt.tokens)} tokens, greedy: {found}"
        ties += found.ties
    assert ties <= TIES


@as_on_one_rank
def test_an_idle_engine_leaves_the_machine_alone(running: Running) -> None:
    shares = running.engine.cpu_shares(IDLE_SECONDS)
    assert max(shares.values()) <= IDLE_SHARE, shares


@as_on_one_rank
def test_an_engines_processes_share_what_the_server_imported(running: Running) -> None:
    """Spawned ones have two thirds of their memory to themselves: it would show if the server no longer forked."""
    memory = {process.name(): process.memory_full_info() for process in running.engine.processes()}
    forked = {name: info for name, info in memory.items() if name.startswith("sglang::")}
    assert len(forked) == 2, list(memory)
    assert all(info.uss < info.rss / 3 for info in forked.values()), forked
