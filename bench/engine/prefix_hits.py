"""Whether an answer that found its prefix again, after the window of that prefix was evicted, is right. `run` calls it.

Prompts that share prefixes go twice through pools that hold a fraction of them; then the cache is emptied before each
prompt and the same engine answers it once more, without any cache. Log-probabilities are compared in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.engine_matrix import PRODUCT_ON_ONE_RANK, Prompt, ask, ask_all, random_prompts, to_flags

PROMPTS = 30
TINY_VOCABULARY = 3072
WINDOW = 128


@dataclass(frozen=True, slots=True)
class Found:
    """Of all answers that came from the cache."""

    hits: int
    """Answers with more cached tokens than the window is wide."""
    evicted_tokens: int
    error: float
    """Largest difference of a chosen token's log-probability, up to where the two answers part and there included: at a
    tie the two tokens' are the same."""
    other_texts: int
    """Answers that part from the other one at some point."""


def measure(checkpoint: Path, logs: Path, say: Callable[[str], None]) -> Found:
    """About a minute on two cores."""
    prompts = random_prompts(PROMPTS, TINY_VOCABULARY, seed=23)
    with running_engine(checkpoint, to_flags(PRODUCT_ON_ONE_RANK), log_path=logs / "prefix.log") as engine:
        say(f"prefix cache: ready after {engine.ready_s:.0f} s")
        cached = [*ask_all(engine, prompts), *ask_all(engine, prompts)]
        evicted = engine.metric("sglang:evicted_tokens_total")
        plain = [_without_cache(engine, prompt) for prompt in prompts]
    return compare(cached, [*plain, *plain], int(evicted))


def _without_cache(engine: Engine, prompt: Prompt) -> Any:
    engine.post("/flush_cache", {})
    answer = ask(engine, prompt.tokens)
    assert answer["meta_info"]["cached_tokens"] == 0
    return answer


def compare(cached: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], evicted_tokens: int) -> Found:
    """Answers of `/generate` with log-probabilities, in the same order; those without a hit do not count."""
    hits, error, others = 0, 0.0, 0
    for one, other in zip(cached, plain, strict=True):
        if one["meta_info"]["cached_tokens"] <= WINDOW:
            continue
        hits += 1
        ours, theirs = (answer["meta_info"]["output_token_logprobs"] for answer in (one, other))
        same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0][1] != pair[1][1]), None)
        others += same is not None
        compared = len(ours) if same is None else same + 1
        error = max([error, *(abs(ours[i][0] - theirs[i][0]) for i in range(compared))])
    return Found(hits, evicted_tokens, error, others)
