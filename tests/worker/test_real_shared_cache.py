"""A whole worker with a shared cache: the way and the key by file and environment, its metrics, its end."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from hanmaru_contracts import keys, names
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache, SharedCache
from hanmaru_testing.engine import free_loopback_port
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.worker_process import PLATFORM_SECRET, running_worker, wait_until_gone, write_worker_files

pytestmark = pytest.mark.timeout(400)

MODEL = ModelRef(namespace="team", name="tiny")
START_S = 300.0
PROMPT = [7 + number % 500 for number in range(600)]


def test_a_worker_fills_its_shared_cache_tells_of_it_and_ends(checkpoint: Path, tmp_path: Path) -> None:
    spec = EngineSpec(
        model=MODEL,
        route="tiny",
        checkpoint=str(checkpoint),
        dtype="float32",
        context_tokens=4096,
        kv_cache=KvCache(page_size=16, max_total_tokens=16384),
        shared_cache=SharedCache(host_gb=1),
        http_port=free_loopback_port(),
        supervisor_port=free_loopback_port(),
        startup_timeout_s=START_S,
    )
    with RedisServer(acl=True) as server, server.client() as admin:
        tier_key = keys.tier_key(PLATFORM_SECRET, MODEL.id).hex()
        secrets = {"key": tier_key, "tier": server.passwords["tier"], "worker": server.passwords["worker"]}
        for name, text in secrets.items():
            (tmp_path / name).touch(mode=0o600)
            (tmp_path / name).write_text(text)
        files = write_worker_files(
            tmp_path / "files",
            spec,
            server.url,
            **{
                names.ENV_REDIS_USER: "worker",
                names.ENV_REDIS_PASSWORD_FILE: str(tmp_path / "worker"),
                names.ENV_TIER_KEY_FILE: str(tmp_path / "key"),
                names.tier_variable(names.ENV_REDIS_URL): server.url,
                names.tier_variable(names.ENV_REDIS_USER): "tier",
                names.tier_variable(names.ENV_REDIS_PASSWORD_FILE): str(tmp_path / "tier"),
            },
        )
        with running_worker(files) as worker:
            worker.wait_for("worker.registered", START_S)
            body = {"input_ids": PROMPT, "cache_salt": "salt", "sampling_params": {"max_new_tokens": 2}}
            status, _ = worker.get(f"{worker.engine_url}/generate", key=worker.engine_key, body=body)
            assert status == 200
            until(lambda: pages(admin) >= len(PROMPT) // 16)
            _, page = worker.get(f"{worker.supervisor_url}/metrics")
            assert b'hanmaru_tier_pages_total{outcome="stored",pool="kv"}' in page
            processes = worker.tree()
            told = "".join(" ".join((*p.cmdline(), *p.environ().values())) for p in processes)
            assert not [name for name, secret in secrets.items() if secret in told]
            worker.signal(signal.SIGTERM)
            assert worker.exit_code() == 0
            assert not wait_until_gone(processes, 20)
        log = "".join(file.read_text(errors="replace") for file in files.log_dir.iterdir())
        assert not [name for name, secret in secrets.items() if secret in log]


def pages(admin: redis.Redis) -> int:
    return sum(b":kv:" in key for key in admin.scan_iter("hm:{tier:*}:page:*", count=10_000))


def until(holds: Any, deadline_s: float = 30.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
