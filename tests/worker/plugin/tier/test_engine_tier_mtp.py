"""The shared cache of engines that draft with the MTP block: the block's own keys and values come back as well."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.reference import Reference
from hanmaru_testing.shared_cache import tier_environment, tier_flags
from transformers import AutoTokenizer

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
PAGE_TOKENS = 16
OUTPUT_TOKENS = 24
LENGTHS = [150, 600, 1100]
KNOWN_TEXT = "Turn on the light in the kitchen. " * 24
"""Of the kind that the model was trained on: drafts of random tokens are hardly ever accepted."""
FLAGS = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--random-seed", "1"]
FLAGS += ["--max-running-requests", "8", "--chunked-prefill-size", "512", "--page-size", str(PAGE_TOKENS)]
FLAGS += ["--max-total-tokens", "5120", "--swa-full-tokens-ratio", "0.6"]
FLAGS += ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3"]
FLAGS += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"]


def test_an_engine_that_drafts_goes_on_with_anothers_pages_as_if_they_were_its_own(
    checkpoint: Path, tmp_path: Path, reference: Reference
) -> None:
    source = random.Random(31)
    prompts = [[source.randrange(64, reference.vocabulary) for _ in range(length)] for length in LENGTHS]
    prompts.append(AutoTokenizer.from_pretrained(checkpoint).encode(KNOWN_TEXT))
    flags = [*FLAGS, *tier_flags(checkpoint)]
    with RedisServer(acl=True) as server, server.client() as admin:
        environment = tier_environment(tmp_path, server)
        answers: list[list[Any]] = []
        for name in ("first", "second"):
            with running_engine(
                checkpoint, flags, log_path=tmp_path / f"{name}.log", environment=environment
            ) as engine:
                answers.append([ask(engine, prompt) for prompt in prompts])
                until_stored(admin, sum((length - 1) // PAGE_TOKENS for length in map(len, prompts)))
    for prompt, computed, found in zip(prompts, *answers, strict=True):
        stored = found["meta_info"]["cached_tokens_details"]["storage"]
        # A page's hash looks at the token behind it too, so that the last page of a prompt may be missing.
        assert stored >= (len(prompt) - 1) // PAGE_TOKENS * PAGE_TOKENS - PAGE_TOKENS
        agreement = reference.agreement(prompt, found)
        assert agreement.output_error < BOUND, agreement
        assert agreement.divergences == agreement.ties, agreement
        # The block drafts the same, so as much of it is accepted: its own cache is right, too.
        assert found["meta_info"]["spec_verify_ct"] == computed["meta_info"]["spec_verify_ct"]
    # Else nothing would be said by that: a step without an accepted draft gives one token.
    known = answers[0][-1]
    assert known["meta_info"]["spec_verify_ct"] < (OUTPUT_TOKENS - 1) / 2


def ask(engine: Engine, prompt: Sequence[int]) -> Any:
    return engine.generate(
        {
            "input_ids": list(prompt),
            "cache_salt": "salt",
            "sampling_params": {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": -1,
        }
    )


def until_stored(admin: Any, pages: int) -> None:
    deadline = time.monotonic() + 20
    while sum(b":kv:" in key for key in admin.scan_iter("hm:{tier:*}:page:*", count=10_000)) < pages:
        assert time.monotonic() < deadline
        time.sleep(0.1)
