"""From a client's socket to SGLang and back, nothing scripted: one real worker, real Redis, the real gateway.

What only the whole can show: greedy answers that are the model's own token for token, caches that no other tenant can
hit, work that stops when its client leaves, and a clear end when the engine dies under a stream. In file order: the
last test kills the engine.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from hanmaru_contracts import keys, names
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache
from hanmaru_gateway.app import open_gateway
from hanmaru_gateway.settings import Settings
from hanmaru_testing.engine import free_loopback_port
from hanmaru_testing.gateway import eventually
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.reference import TIE_LOGITS, Reference
from hanmaru_testing.worker_process import PLATFORM_SECRET, WorkerProcess, running_worker, write_worker_files
from tokenizers import Tokenizer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-k-exaone"
MODEL = ModelRef(namespace="team", name="tiny")
START_S = 300.0
BOUND = 1e-4
OUTPUT_TOKENS = 12
LENGTHS = [1, 2, 17, 64, 100, 126, 127, 128, 129, 130, 131, 160, 200, 254, 255, 256, 257, 300, 384, 513, 700]


@dataclass(frozen=True, slots=True)
class WholePath:
    """The whole path, and a key for each of its tenants."""

    url: str
    keys: dict[str, str]
    worker: WorkerProcess

    def client(self, tenant: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {self.keys[tenant]}"})

    async def complete(self, tenant: str, **fields: Any) -> dict[str, Any]:
        body = {"model": "tiny", "temperature": 0, **fields}
        async with self.client(tenant) as client, client.post("/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found

    async def running_requests(self) -> int:
        """What the engine itself says."""
        url = f"{self.worker.engine_url}/v1/loads"
        status, body = await asyncio.to_thread(self.worker.get, url, key=self.worker.engine_key)
        assert status == 200
        return sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in json.loads(body)["loads"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def path(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholePath]:
    folder = tmp_path_factory.mktemp("path")
    tenants = {name: keys.new_api_key() for name in ("acme", "other", "team-a", "team-b")}
    shared = {"type": "Shared", "shared": {"name": "teams"}}
    entries = [
        {
            "name": name,
            "credentials": [{"name": "test", "apiKey": {"sha256": keys.api_key_digest(key)}}],
            "models": [{"namespace": MODEL.namespace, "name": MODEL.name}],
            **({"isolation": shared} if name.startswith("team-") else {}),
        }
        for name, key in tenants.items()
    ]
    (folder / "tenants.json").write_text(json.dumps({"tenants": entries}))
    (folder / "secret").write_bytes(PLATFORM_SECRET)
    spec = EngineSpec(
        model=MODEL,
        route="tiny",
        checkpoint=str(CHECKPOINT),
        dtype="float32",
        context_tokens=8192,
        kv_cache=KvCache(page_size=1, max_total_tokens=16384),
        http_port=free_loopback_port(),
        supervisor_port=free_loopback_port(),
        startup_timeout_s=START_S,
        hang_timeout_s=10.0,
    )
    with RedisServer(acl=True) as redis:
        passwords = {role: folder / f"{role}.password" for role in ("worker", "gateway")}
        for role, file in passwords.items():
            file.touch(mode=0o600)
            file.write_text(redis.passwords[role])
        access = {names.ENV_REDIS_USER: "worker", names.ENV_REDIS_PASSWORD_FILE: str(passwords["worker"])}
        settings = Settings(
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            redis_url=redis.url,
            redis_user="gateway",
            redis_password_file=passwords["gateway"],
            platform_secret_file=folder / "secret",
            tenants_file=folder / "tenants.json",
            shutdown_timeout_s=2.0,
        )
        with running_worker(write_worker_files(folder, spec, redis.url, **access)) as worker:
            async with open_gateway(settings, {}) as gateway:
                await asyncio.to_thread(worker.wait_for, "worker.registered", START_S)
                await eventually(lambda: gateway.registry.fleet.models)
                yield WholePath(f"http://127.0.0.1:{gateway.http.port}", tenants, worker)


async def test_greedy_answers_are_the_models_own_token_for_token(path: WholePath) -> None:
    # In threads: the gateway lives in this loop, and one that stands still loses sight of its Redis.
    reference = await asyncio.to_thread(Reference, CHECKPOINT)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    source = random.Random(5)
    ties = 0
    for length in LENGTHS:
        prompt = [source.randrange(64, reference.vocabulary) for _ in range(length)]
        answer = await path.complete("acme", prompt=prompt, max_tokens=OUTPUT_TOKENS, ignore_eos=True, logprobs=0)
        (choice,) = answer["choices"]
        told = choice["logprobs"]
        assert answer["usage"]["prompt_tokens"] == length
        assert len(told["tokens"]) == OUTPUT_TOKENS
        steps = await asyncio.to_thread(reference.greedy, prompt, OUTPUT_TOKENS)
        expected = [tokenizer.decode([step.token], skip_special_tokens=False) for step in steps]
        for position, step in enumerate(steps):
            # A token that is no whole character is shown as its bytes; its log-probability tells.
            if "�" not in expected[position] and told["tokens"][position] != expected[position]:
                assert step.margin_logits < TIE_LOGITS, (length, position)
                ties += 1
                break  # another text from here on
            assert told["token_logprobs"][position] == pytest.approx(step.log_probability, abs=BOUND), length
    assert ties <= 1


async def test_cached_prefixes_are_hit_within_an_isolation_domain_and_never_across(path: WholePath) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. 오늘도 좋은 하루 되세요. " * 20

    async def cached(tenant: str) -> int:
        usage = (await path.complete(tenant, prompt=prompt, max_tokens=4))["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    assert await cached("acme") == 0
    assert await cached("acme") > 0
    assert await cached("other") == 0
    assert await cached("team-a") == 0
    assert await cached("team-b") > 0  # their specs put both into one shared domain


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engines_work(path: WholePath, stream: bool) -> None:
    body = {"model": "tiny", "prompt": [70] * 20, "max_tokens": 6000, "min_tokens": 6000, "stream": stream}
    async with path.client("acme") as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await eventually(path.running_requests)
        if stream:
            answer = await asking
            await answer.content.readany()
            answer.close()
        else:
            asking.cancel()
    left_at = time.monotonic()

    async def is_idle() -> bool:
        return await path.running_requests() == 0

    await eventually(is_idle)
    # 6,000 tokens take a minute and more: it was stopped, it did not finish.
    assert time.monotonic() - left_at < 10


async def test_thoughts_are_told_apart_from_the_answer(path: WholePath) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for thinks in (True, False):
        body = {
            "model": "tiny",
            "messages": messages,
            "temperature": 0,
            "max_tokens": 200,
            "chat_template_kwargs": {"enable_thinking": thinks},
        }
        async with path.client("acme") as client, client.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            message = (await answer.json())["choices"][0]["message"]
        assert bool(message.get("reasoning_content")) is thinks
        assert "<think>" not in (message.get("content") or "")


async def test_an_engine_killed_under_a_stream_ends_it_with_an_error_event(path: WholePath) -> None:
    body = {"model": "tiny", "prompt": [70] * 20, "max_tokens": 6000, "min_tokens": 6000, "stream": True}
    async with path.client("acme") as client:
        answer = await client.post("/v1/completions", json=body)
        assert answer.status == 200
        await answer.content.readany()
        tree = path.worker.tree()
        scheduler = next(process for process in tree if "scheduler" in process.name())
        scheduler.kill()
        async with asyncio.timeout(30):
            rest = await answer.content.read()
        events = [line.removeprefix(b"data: ") for line in rest.split(b"\n") if line.startswith(b"data: ")]
        assert json.loads(events[-1])["error"]["code"] == "worker_lost"
        refused = await client.post("/v1/completions", json=body)
        assert refused.status in (502, 503)
        refused.close()
    assert await asyncio.to_thread(path.worker.exit_code) == 1
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
