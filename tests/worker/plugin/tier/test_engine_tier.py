"""Two real engines and a real Redis: what one has computed the other finds, and what is not so costs the hit alone.

The pools are smaller than what they are offered, hybrid KV is on, and every answer is compared with transformers in
float32: a page in the wrong place, or of another prompt, would show in the log-probabilities.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from hanmaru_testing.engine import Engine, running_engine
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.reference import Reference
from hanmaru_testing.shared_cache import TIER_KEY, tier_environment, tier_flags

pytestmark = pytest.mark.timeout(420)

BOUND = 1e-4
PAGE_TOKENS = 16
LENGTHS = {
    "short": 200,
    "long": 1500,
    "chunked": 700,
    "forged": 600,
    "moved": 600,
    "cut": 400,
    "alien": 300,
    "lost": 500,
}
"""What is done with each prompt's pages before the second engine is asked; the first three are left alone."""
KEPT = ("short", "long", "chunked")
FLAGS = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--enable-metrics", "--random-seed", "1"]
FLAGS += ["--max-running-requests", "8", "--chunked-prefill-size", "512", "--page-size", str(PAGE_TOKENS)]
FLAGS += ["--max-total-tokens", "5120", "--swa-full-tokens-ratio", "0.4"]
STORED_DEADLINE_S = 20.0
HOT_PREFIX_TOKENS, HOT_TAIL_TOKENS = 1000, 150

SALT_MARK = "6e0f2b71c3"
"""In each domain's salt, and in nothing else."""

Pages = dict[str, list[bytes]]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> dict[str, list[int]]:
    source = random.Random(23)
    return {what: [source.randrange(64, reference.vocabulary) for _ in range(n)] for what, n in LENGTHS.items()}


@pytest.fixture(scope="module")
def start(checkpoint: Path, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("tier")
    environment = tier_environment(folder, server)
    flags = [*FLAGS, *tier_flags(checkpoint)]
    assert not any(secret in " ".join(flags) for secret in (TIER_KEY, server.passwords["tier"]))
    return lambda name: running_engine(checkpoint, flags, log_path=folder / f"{name}.log", environment=environment)


@pytest.fixture(scope="module")
def hot(reference: Reference) -> list[list[int]]:
    """Prompts that begin alike and end differently."""
    source = random.Random(29)

    def some(count: int) -> list[int]:
        return [source.randrange(64, reference.vocabulary) for _ in range(count)]

    prefix = some(HOT_PREFIX_TOKENS)
    return [prefix + some(HOT_TAIL_TOKENS) for _ in range(3)]


@pytest.fixture(scope="module")
def stored(
    start: Callable[[str], Any], server: RedisServer, prompts: dict[str, list[int]], hot: list[list[int]]
) -> Pages:
    """What the first engine has left in Redis, by prompt."""
    pages: Pages = {}
    with start("first") as engine, server.client() as admin:
        for what, prompt in prompts.items():
            before = set(admin.scan_iter("hm:{tier:*}:page:*", count=10_000))
            ask(engine, prompt, what)
            pages[what] = sorted(until_stored(admin, before, len(prompt) // PAGE_TOKENS))
        before = set(admin.scan_iter("hm:{tier:*}:page:*", count=10_000))
        for number in range(2):
            ask(engine, hot[number], "hot")
        own = HOT_TAIL_TOKENS // PAGE_TOKENS - 1
        until_stored(admin, before, HOT_PREFIX_TOKENS // PAGE_TOKENS + 2 * own)
    return pages


@pytest.fixture(scope="module")
def second(start: Callable[[str], Any], stored: Pages, server: RedisServer) -> Iterator[Engine]:
    with server.client() as admin:
        for page in stored["forged"]:
            admin.set(page, b"\x2a" * admin.strlen(page), ex=600)
        exchange(admin, stored["moved"])
        for page in stored["cut"]:
            admin.set(page, admin.getrange(page, 0, 100), ex=600)
        for page in stored["alien"]:
            admin.delete(page)
            admin.rpush(page, "not even a string")
    with start("second") as engine:
        yield engine


@pytest.mark.parametrize("what", KEPT)
def test_what_one_engine_computed_another_finds_and_answers_the_same(
    what: str, second: Engine, prompts: dict[str, list[int]], reference: Reference
) -> None:
    answer = ask(second, prompts[what], what)
    # The last token is always computed, so that there is something to sample from.
    whole_pages = (len(prompts[what]) - 1) // PAGE_TOKENS * PAGE_TOKENS
    assert answer["meta_info"]["cached_tokens_details"]["storage"] == whole_pages
    assert_right(answer, prompts[what], reference)


def test_a_prefix_that_two_prompts_shared_is_there_for_a_third(
    second: Engine, hot: list[list[int]], reference: Reference
) -> None:
    answer = ask(second, hot[2], "hot")
    assert answer["meta_info"]["cached_tokens_details"]["storage"] == HOT_PREFIX_TOKENS // PAGE_TOKENS * PAGE_TOKENS
    assert_right(answer, hot[2], reference)


def test_another_domain_finds_nothing_of_it(
    second: Engine, prompts: dict[str, list[int]], reference: Reference
) -> None:
    answer = ask(second, prompts["long"], "somebody else")
    assert answer["meta_info"]["cached_tokens"] == 0
    assert_right(answer, prompts["long"], reference)


@pytest.mark.parametrize("what", ["forged", "moved", "cut", "alien"])
def test_pages_that_are_not_what_was_stored_are_not_believed(
    what: str, second: Engine, prompts: dict[str, list[int]], reference: Reference
) -> None:
    refused = pages_counted(second, "refused")
    answer = ask(second, prompts[what], what)
    assert answer["meta_info"]["cached_tokens"] == 0
    assert_right(answer, prompts[what], reference)
    has_the_right_length = what in ("forged", "moved")
    assert (pages_counted(second, "refused") > refused) == has_the_right_length


def test_the_tier_counts_itself_on_the_engines_page(second: Engine) -> None:
    assert pages_counted(second, "hit") >= sum(LENGTHS[what] // PAGE_TOKENS - 1 for what in KEPT)
    assert second.metric("hanmaru_tier_lookups_total") >= len(LENGTHS) - 1
    assert 'hanmaru_tier_bytes_total{direction="read"}' in second.get("/metrics")


def test_nothing_of_prompts_or_secrets_reaches_the_log(
    second: Engine, server: RedisServer, prompts: dict[str, list[int]]
) -> None:
    ask(second, prompts["long"], "long")
    log = second.log()
    assert "tier.on" in log, "the tier has something to say"
    assert server.passwords["tier"] not in log
    assert TIER_KEY not in log
    assert SALT_MARK not in log
    for prompt in prompts.values():
        for separator in (", ", ",", " "):
            assert separator.join(map(str, prompt[:4])) not in log


def test_without_redis_the_answer_is_the_same_and_comes_in_time(
    second: Engine, prompts: dict[str, list[int]], reference: Reference, server: RedisServer
) -> None:
    """Last of the module: the server is gone afterwards."""
    server.stop()
    for turn in range(4):
        prompt = prompts["lost"] if turn == 0 else prompts["lost"][turn * 7 :]
        began = time.monotonic()
        answer = ask(second, prompt, f"lost {turn}" if turn else "lost")
        assert time.monotonic() - began < 20
        assert_right(answer, prompt, reference)
    assert second.metric("hanmaru_tier_failures_total") > 0
    assert 'tier.lost {"problem": "Redis cannot be reached' in second.log()


def ask(engine: Engine, prompt: Sequence[int], domain: str) -> Any:
    return engine.generate(
        {
            "input_ids": list(prompt),
            "cache_salt": f"{domain} {SALT_MARK}",
            "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": -1,
        }
    )


def assert_right(answer: Any, prompt: Sequence[int], reference: Reference) -> None:
    found = reference.agreement(prompt, answer)
    assert found.output_error < BOUND, found
    assert found.divergences == found.ties, found


def until_stored(admin: redis.Redis, before: set[bytes], global_pages: int) -> set[bytes]:
    """The keys that came, once the global layers' pages are whole; they are written last."""
    deadline = time.monotonic() + STORED_DEADLINE_S
    while True:
        new = set(admin.scan_iter("hm:{tier:*}:page:*", count=10_000)) - before
        if sum(b":kv:" in key for key in new) >= global_pages:
            return new
        assert time.monotonic() < deadline, f"{len(new)} keys for {global_pages} pages"
        time.sleep(0.1)


def exchange(admin: redis.Redis, pages: Sequence[bytes]) -> None:
    """Every page under the name of the next one of its pool."""
    for pool in (b":kv:", b":swa:"):
        own = [page for page in pages if pool in page]
        values = [admin.get(page) for page in own]
        for page, value in zip(own, values[1:] + values[:1], strict=True):
            assert value is not None
            admin.set(page, value, ex=600)


def pages_counted(engine: Engine, outcome: str) -> float:
    lines = [line for line in engine.get("/metrics").splitlines() if line.startswith("hanmaru_tier_pages_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'outcome="{outcome}"' in line)
