"""The shared cache of an engine of two ranks: each has pages of its own, and they restore what both of them can.

That is not the shorter of their longest prefixes: a sliding window makes a rank able to restore 40 pages but not 28.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.reference import Reference
from hanmaru_testing.shared_cache import tier_environment, tier_flags

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
PAGE_TOKENS = 16
RANKS = 2
ENDS = [20, 28, 40]
"""In pages: how much of one long prompt was asked, one after another. At each end a window was stored."""
FLAGS = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--random-seed", "1"]
FLAGS += ["--tp-size", str(RANKS), "--max-running-requests", "4", "--chunked-prefill-size", "512"]
FLAGS += ["--page-size", str(PAGE_TOKENS), "--max-total-tokens", "4096", "--swa-full-tokens-ratio", "0.5"]
# Both ranks would otherwise bind to every core of the one NUMA node.
BINDING = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}


def test_ranks_restore_the_longest_prefix_that_all_of_them_have(
    checkpoint: Path, tmp_path: Path, reference: Reference
) -> None:
    """Rank 0 lost the window at 28 pages and has the one at 40, rank 1 has nothing global beyond 28."""
    source = random.Random(37)
    whole, torn = ([source.randrange(64, reference.vocabulary) for _ in range(41 * PAGE_TOKENS)] for _ in range(2))
    flags = [*FLAGS, *tier_flags(checkpoint)]
    with RedisServer(acl=True) as server, server.client() as admin:
        environment = {**BINDING, **tier_environment(tmp_path, server)}

        def start(name: str) -> AbstractContextManager[Engine]:
            return running_engine(checkpoint, flags, log_path=tmp_path / f"{name}.log", environment=environment)

        with start("first") as engine:
            ask(engine, whole)
            reached, stored = 0, [until_stored(admin, set(), 41)]
            for end in ENDS:
                ask(engine, torn[: end * PAGE_TOKENS])
                stored.append(until_stored(admin, set().union(*stored), end - reached))
                reached = end
        _, _, to_28, to_40 = stored
        lost = of_rank(0, "swa", to_28) + of_rank(1, "kv", to_40)
        assert admin.delete(*lost) == len(lost) > (40 - 28)
        with start("second") as engine:
            answers = [(prompt, ask(engine, prompt)) for prompt in (whole, torn)]
    details = [answer["meta_info"]["cached_tokens_details"] or {"storage": 0} for _, answer in answers]
    restored = [detail["storage"] // PAGE_TOKENS for detail in details]
    assert restored == [40, 20]  # the last token of a prompt is always computed
    for prompt, answer in answers:
        agreement = reference.agreement(prompt, answer)
        assert agreement.output_error < BOUND, agreement
        assert agreement.divergences == agreement.ties, agreement


def of_rank(rank: int, pool: str, keys: set[bytes]) -> list[bytes]:
    return [key for key in keys if f":t{rank}of{RANKS}.".encode() in key and f":{pool}:".encode() in key]


def ask(engine: Engine, prompt: Sequence[int]) -> Any:
    return engine.generate(
        {
            "input_ids": list(prompt),
            "cache_salt": "salt",
            "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": -1,
        }
    )


def until_stored(admin: redis.Redis, before: set[bytes], global_pages: int) -> set[bytes]:
    """The keys that came, once both ranks' global layers' pages are whole; they are written last."""
    deadline = time.monotonic() + 20
    while True:
        new = set(admin.scan_iter("hm:{tier:*}:page:*", count=10_000)) - before
        if sum(b":kv:" in key for key in new) >= RANKS * global_pages:
            return new
        assert time.monotonic() < deadline, f"{len(new)} keys for {global_pages} pages a rank"
        time.sleep(0.1)
