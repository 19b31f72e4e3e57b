"""Two ranks of one engine, each with half of the experts and its own supervisor, with SGLang itself over gloo."""

from __future__ import annotations

import signal
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hanmaru_contracts import names, redis_keys
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache, Parallelism
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.worker_process import (
    WorkerProcess,
    free_port_run,
    idle_shares,
    running_worker,
    wait_until_gone,
    write_worker_files,
)

pytestmark = pytest.mark.timeout(500)

MODEL = ModelRef(namespace="team", name="tiny")
START_S = 400.0
HANG_TIMEOUT_S = 10.0
IDLE_SHARE = 0.05


@contextmanager
def started(folder: Path, checkpoint: Path, redis_url: str) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    first = free_port_run(5)
    spec = EngineSpec(
        model=MODEL,
        route="tiny",
        checkpoint=str(checkpoint),
        dtype="float32",
        context_tokens=4096,
        parallelism=Parallelism(tensor=2, expert=2),
        kv_cache=KvCache(page_size=16, max_total_tokens=16384),
        http_port=first,
        supervisor_port=first + 2,
        startup_timeout_s=START_S,
        hang_timeout_s=HANG_TIMEOUT_S,
        drain_timeout_s=30.0,
    )
    places = {names.ENV_GROUP_SIZE: "2", names.ENV_GROUP_ADDRESS: f"127.0.0.1:{first + 4}"}
    places[names.ENV_GROUP_PEERS] = "127.0.0.1,127.0.0.1"
    files = [
        write_worker_files(
            folder / str(rank), spec, redis_url, TMPDIR=str(folder), **{names.ENV_GROUP_RANK: str(rank)}, **places
        )
        for rank in (0, 1)
    ]
    with running_worker(files[0]) as leader, running_worker(files[1]) as follower:
        leader.wait_for("worker.registered", START_S)
        yield leader, follower


def await_ready(worker: WorkerProcess, port: int, deadline_s: float = 10.0) -> None:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError):
            if worker.get(f"http://127.0.0.1:{port}/ready")[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"port {port} was not ready within {deadline_s} s")


def test_a_group_serves_idles_and_ends_with_its_rank_0(tmp_path: Path, checkpoint: Path) -> None:
    with RedisServer() as server, started(tmp_path, checkpoint, server.url) as (leader, follower):
        await_ready(follower, leader.files.spec.supervisor_port + 1)
        with server.client() as client:
            assert client.zcard(redis_keys.workers(MODEL.id)) == 1
        body = {"input_ids": [5] * 200, "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}}
        assert leader.get(f"{leader.engine_url}/generate", key=leader.engine_key, body=body)[0] == 200
        status, page = leader.get(f"{leader.supervisor_url}/metrics")
        assert status == 200
        assert b"sglang:eplb_balancedness_count" in page, "rank 0 says how evenly the ranks' experts are used"

        shares = idle_shares((leader, follower), IDLE_SHARE)
        assert max(shares) <= IDLE_SHARE, shares

        members = leader.tree() + follower.tree()
        leader.signal(signal.SIGKILL)
        began = time.monotonic()
        assert follower.exit_code() == 1
        assert time.monotonic() - began < 16
        assert wait_until_gone(members, 5) == []


def test_rank_0_ends_when_another_rank_is_lost(tmp_path: Path, checkpoint: Path) -> None:
    with RedisServer() as server, started(tmp_path, checkpoint, server.url) as (leader, follower):
        members = leader.tree() + follower.tree()
        follower.signal(signal.SIGKILL)
        leader.wait_for("worker.deregistered", HANG_TIMEOUT_S * 4 / 3 + 10)
        assert leader.exit_code() == 1
        assert wait_until_gone(members, 5) == []
