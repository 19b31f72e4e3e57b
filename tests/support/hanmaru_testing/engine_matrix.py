"""The switches an engine may run with, random prompts that share prefixes, and one run of both against transformers.

`tests/worker/plugin/test_engine_matrix.py` runs combinations that cover every pair of values; `engine_full` runs them
all. Pools are so small that slots change hands all the time: that is when a location of the wrong pool, or a key
outside the window, becomes another request's key. The reference is asked once for each distinct answer, so that all
combinations together cost little more of it than one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from typing import Any

from hanmaru_testing.engine import Engine
from hanmaru_testing.reference import Reference

BOUND = 1e-4
"""Of the difference between the engine's log-probability of a token and the reference's."""
OUTPUT_TOKENS = 32
LONGEST_PROMPT = 4000
FAMILY = 5
"""Prompts that share one prefix."""
RUNNING_REQUESTS = 8
CLIENTS = 12
DRAFTED_TOKENS = 3

FULL_POOL_TOKENS = 6144
SLIDING_POOL_TOKENS = 2048
SLIDING_POOL_TOKENS_UNCUT = 5120
"""Without chunks a whole prompt passes through the sliding pool at once."""


@dataclass(frozen=True, slots=True)
class Switches:
    """One combination."""

    hybrid: bool
    mtp: bool
    prefix_cache: bool
    chunked_prefill: bool
    expert_parallel: bool

    def __str__(self) -> str:
        on = [name for name, value in zip(NAMES, astuple(self), strict=True) if value]
        return "+".join(on) or "plain"


NAMES = tuple(field.name for field in fields(Switches))

ALL = tuple(Switches(*values) for values in itertools.product((True, False), repeat=len(NAMES)))

PRODUCT_ON_ONE_RANK = Switches(hybrid=True, mtp=False, prefix_cache=True, chunked_prefill=True, expert_parallel=False)

PAIRWISE = (
    PRODUCT_ON_ONE_RANK,
    Switches(hybrid=True, mtp=True, prefix_cache=True, chunked_prefill=True, expert_parallel=True),
    Switches(hybrid=True, mtp=True, prefix_cache=True, chunked_prefill=False, expert_parallel=False),
    Switches(hybrid=True, mtp=True, prefix_cache=False, chunked_prefill=True, expert_parallel=False),
    Switches(hybrid=False, mtp=True, prefix_cache=True, chunked_prefill=True, expert_parallel=False),
    Switches(hybrid=False, mtp=False, prefix_cache=False, chunked_prefill=False, expert_parallel=True),
)
"""Every two switches take all four pairs of values in these; six is the least for five switches."""


def to_flags(switches: Switches) -> list[str]:
    """What SGLang is started with, besides what `running_engine` gives it."""
    flags = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--enable-metrics", "--random-seed", "1"]
    flags += ["--max-running-requests", str(RUNNING_REQUESTS), "--max-total-tokens", str(FULL_POOL_TOKENS)]
    flags += ["--chunked-prefill-size", "256" if switches.chunked_prefill else "-1"]
    # SGLang's own share is below zero without chunks; the pools are sized in tokens anyway.
    flags += ["--mem-fraction-static", "0.5"]
    if switches.hybrid:
        sliding = SLIDING_POOL_TOKENS if switches.chunked_prefill else SLIDING_POOL_TOKENS_UNCUT
        flags += ["--swa-full-tokens-ratio", str(sliding / FULL_POOL_TOKENS)]
    else:
        flags += ["--disable-hybrid-swa-memory"]
    if not switches.prefix_cache:
        flags += ["--disable-radix-cache"]
    if switches.mtp:
        flags += ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(DRAFTED_TOKENS)]
        flags += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(DRAFTED_TOKENS + 1)]
    if switches.expert_parallel:
        flags += ["--tp-size", "2", "--ep-size", "2"]
    return flags


def to_environment(switches: Switches) -> dict[str, str]:
    """Two ranks would otherwise bind to every core of the one NUMA node."""
    return {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"} if switches.expert_parallel else {}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, and which shared prefix they begin with."""

    tokens: list[int]
    family: int


def random_prompts(count: int, vocabulary: int, *, seed: int) -> list[Prompt]:
    """Prompts of 1 to `LONGEST_PROMPT` tokens, both among them, in random order; lengths are log-uniform."""
    source = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [source.randrange(64, vocabulary) for _ in range(length)]

    prompts = [Prompt(draw(1), -1), Prompt(draw(LONGEST_PROMPT), -2)]
    for family in range(-(-(count - len(prompts)) // FAMILY)):
        shared = draw(round(LONGEST_PROMPT ** source.uniform(0.3, 0.98)))
        room = LONGEST_PROMPT - len(shared)
        prompts += [Prompt(shared + draw(source.randint(1, min(room, 300))), family) for _ in range(FAMILY)]
    prompts = prompts[:count]
    source.shuffle(prompts)
    return prompts


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one combination answered all prompts."""

    answers: int
    worst_error: float
    """Largest difference of a chosen token's log-probability."""
    ties: int
    """Greedy divergences, each on two logits that the reference has within `TIE_LOGITS` of each other."""
    cached_tokens: list[int]
    """Of each prompt, how many tokens came from the prefix cache."""
    wrong: list[str]
    """One line for each answer that is further from the reference than allowed."""


def ask(engine: Engine, prompt: Sequence[int], *, with_prompt: bool = False, temperature: float = 0) -> Any:
    """With log-probabilities; asking for the prompt's own keeps the engine from using its prefix cache."""
    return engine.generate(
        {
            "input_ids": list(prompt),
            "sampling_params": {"temperature": temperature, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": 0 if with_prompt else -1,
        },
        deadline_s=300,
    )


def ask_all(engine: Engine, prompts: Sequence[Prompt], *, with_prompts: bool = False) -> list[Any]:
    """Many at a time, in order; the answers by index of the prompt."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda prompt: ask(engine, prompt.tokens, with_prompt=with_prompts), prompts))


def judge(reference: Reference, prompts: Sequence[Prompt], answers: Sequence[Mapping[str, Any]]) -> Outcome:
    """Compare the answers of one engine with the reference."""
    worst, ties, wrong = 0.0, 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        found = reference.agreement(prompt.tokens, answer)
        worst, ties = max(worst, found.output_error), ties + found.ties
        is_whole = len(answer["output_ids"]) == OUTPUT_TOKENS
        if not (is_whole and found.output_error < BOUND and found.divergences == found.ties):
            told = (
                f"{len(prompt.tokens)} tokens (family {prompt.family}), {answer['meta_info']['cached_tokens']} cached"
            )
            wrong.append(f"{told}, {len(answer['output_ids'])} out: {found}")
    hits = [answer["meta_info"]["cached_tokens"] for answer in answers]
    return Outcome(len(answers), worst, ties, hits, wrong)
