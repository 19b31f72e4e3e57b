"""The supervisor with SGLang itself: one engine serves as many tests as it survives, the last of them drains it.

A start takes 50 s on two idle cores, twice that on busy ones.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from hanmaru_contracts import names, redis_keys
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache
from hanmaru_contracts.wire.worker import WorkerRecord, unpack_artifact, unseal
from hanmaru_testing.engine import free_loopback_port
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.worker_process import (
    PLATFORM_SECRET,
    WorkerProcess,
    idle_shares,
    running_worker,
    wait_until_gone,
    write_worker_files,
)

pytestmark = pytest.mark.timeout(400)

MODEL = ModelRef(namespace="team", name="tiny")
LEASE = redis_keys.worker_lease(MODEL.id, ReplicaId("worker-0"))
START_S = 300.0
HANG_TIMEOUT_S = 10.0
IDLE_SHARE = 0.05
ADVERTISED = "127.0.0.2"
"""Loopback too, but not where a listener ends up by default."""
PROMPT = "a sentence that must not be found in any log"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(acl=True) as server:
        yield server


@contextmanager
def started(folder: Path, checkpoint: Path, server: RedisServer, **variables: str) -> Iterator[WorkerProcess]:
    """A worker with the real engine, as Redis's user `worker`."""
    spec = EngineSpec(
        model=MODEL,
        route="tiny",
        checkpoint=str(checkpoint),
        dtype="float32",
        context_tokens=4096,
        kv_cache=KvCache(page_size=16, max_total_tokens=32768),
        draft_tokens=3,
        http_port=free_loopback_port(),
        supervisor_port=free_loopback_port(),
        startup_timeout_s=START_S,
        hang_timeout_s=HANG_TIMEOUT_S,
        drain_timeout_s=60.0,
    )
    folder.mkdir(exist_ok=True)
    password = folder / "redis.password"
    password.touch(mode=0o600)
    password.write_text(server.passwords["worker"])
    files = write_worker_files(
        folder,
        spec,
        server.url,
        TMPDIR=str(folder),
        **{names.ENV_REDIS_USER: "worker", names.ENV_REDIS_PASSWORD_FILE: str(password)},
        **variables,
    )
    with running_worker(files) as worker:
        yield worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, server: RedisServer) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    with started(folder, checkpoint, server, **{names.ENV_ADVERTISE_HOST: ADVERTISED}) as worker:
        worker.wait_for("worker.registered", START_S)
        yield worker


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def record(store: redis.Redis) -> WorkerRecord | None:
    sealed: Any = store.get(LEASE)
    return sealed and unseal(sealed, PLATFORM_SECRET, MODEL.id, ReplicaId("worker-0"), int(time.time() * 1000))


def generation(tokens: int, prompts: int = 1, **more: Any) -> dict[str, Any]:
    prompt: Any = [5] * 10 if prompts == 1 else [[5 + n] * 10 for n in range(prompts)]
    return {"input_ids": prompt, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, **more}


def named(worker: WorkerProcess, name: str) -> psutil.Process:
    """The engine's process of that title."""
    return next(process for process in worker.tree() if name in process.name())


def test_a_registered_worker_generates_and_can_be_rendered_for(worker: WorkerProcess, store: redis.Redis) -> None:
    found = record(store)
    assert found is not None
    assert found.address == f"{ADVERTISED}:{worker.files.spec.http_port}"
    assert found.capabilities.sliding_window_tokens == 128
    packed: Any = store.get(redis_keys.artifact(MODEL.id, found.artifact))
    assert "messages" in unpack_artifact(packed, found.artifact).chat_template
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    status, answer = worker.get(f"{worker.engine_url}/v1/chat/completions", key=worker.engine_key, body=body)
    assert status == 200
    assert json.loads(answer)["usage"]["completion_tokens"] > 0


OPEN = {"/health", "/ready"}
FOR_THE_KEY = {"/v1/models", "/v1/loads", "/metrics", "/health_generate"}
CLOSED_GETS = [
    "/server_info", "/get_server_info", "/model_info", "/flush_cache", "/start_profile", "/get_weights_by_name",
    "/open_session", "/hicache/storage-backend", "/list_external_corpora", "/openapi.json", "/docs", "/", "/ping",
    "/healthx", "/metrics/", "/v1/realtime", "/api/tags", "/no/such/route",
]  # fmt: skip
CLOSED_POSTS = [
    "/abort_request", "/update_weights_from_disk", "/update_weights_from_tensor", "/init_weights_update_group",
    "/release_memory_occupation", "/pause_generation", "/set_internal_state", "/configure_logging",
    "/load_lora_adapter", "/open_session", "/close_session", "/encode", "/classify", "/parse_function_call",
    "/separate_reasoning",
    "/v1/embeddings", "/v1/score", "/v1/responses", "/v1/messages", "/api/chat", "/invocations", "/vertex_generate",
]  # fmt: skip


def test_without_the_engines_key_nothing_answers_but_health(worker: WorkerProcess) -> None:
    for path in [*FOR_THE_KEY, *CLOSED_GETS]:
        for key in (None, "wrong"):
            assert (path, worker.get(worker.engine_url + path, key=key)[0]) == (path, 401)
    for path in ["/generate", "/v1/chat/completions", "/v1/completions", *CLOSED_POSTS]:
        assert (path, worker.get(worker.engine_url + path, body={})[0]) == (path, 401)
    for path in OPEN:
        assert worker.get(worker.engine_url + path)[0] == 200


def test_the_gateways_key_opens_what_requests_need_and_nothing_else(worker: WorkerProcess) -> None:
    for path in FOR_THE_KEY:
        assert (path, worker.get(worker.engine_url + path, key=worker.engine_key)[0]) == (path, 200)
    for path in CLOSED_GETS:
        assert (path, worker.get(worker.engine_url + path, key=worker.engine_key)[0]) == (path, 401)
    for path in CLOSED_POSTS:
        assert (path, worker.get(worker.engine_url + path, key=worker.engine_key, body={})[0]) == (path, 401)


def test_every_listener_is_the_advertised_one_or_on_loopback(worker: WorkerProcess) -> None:
    spec = worker.files.spec
    listeners = {
        (connection.laddr.ip, connection.laddr.port)
        for process in worker.tree()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == 2
    }
    elsewhere = {(ip, port) for ip, port in listeners if ip != "127.0.0.1"}
    assert elsewhere == {(ADVERTISED, spec.http_port), (ADVERTISED, spec.supervisor_port)}


def test_no_key_is_in_an_argument_a_variable_or_a_log(worker: WorkerProcess) -> None:
    secrets = [worker.engine_key, Path(worker.files.environment[names.ENV_REPLICA_KEY_FILE]).read_text()]
    shown = [worker.files.log_dir.joinpath("engine-worker-0-0.log").read_text(), json.dumps(worker.events)]
    for process in worker.tree():
        shown += [" ".join(process.cmdline()), json.dumps(process.environ())]
    assert not [secret for secret in secrets for text in shown if secret in text]
    assert not [text for text in shown if PROMPT in text or "admin_api_key" in text]


def test_an_idle_worker_uses_little_of_a_core(worker: WorkerProcess) -> None:
    (share,) = idle_shares([worker], IDLE_SHARE)
    assert share <= IDLE_SHARE


def test_a_busy_engine_is_not_taken_for_a_hanging_one(worker: WorkerProcess, store: redis.Redis) -> None:
    done: list[int] = []
    ends_at = time.monotonic() + 1.3 * HANG_TIMEOUT_S

    def keep_busy() -> None:
        url, body = f"{worker.engine_url}/generate", generation(tokens=300, prompts=24)
        while time.monotonic() < ends_at:
            done.append(worker.get(url, key=worker.engine_key, body=body, deadline_s=200)[0])

    requests = threading.Thread(target=keep_busy)
    requests.start()
    loads = []
    while requests.is_alive():
        found = record(store)
        assert found is not None, "the lease was lost under load"
        loads.append(found.load)
        requests.join(0.5)
    assert set(done) == {200}
    assert max(load.running_requests for load in loads) == 16
    assert max(load.queued_requests for load in loads) > 0
    assert 0 < max(load.kv_load_ratio for load in loads) <= 1


def test_a_drain_lets_a_running_stream_finish(worker: WorkerProcess, store: redis.Redis) -> None:
    """The last test of this engine."""
    tokens = 1000
    request = urllib.request.Request(
        f"{worker.engine_url}/generate",
        json.dumps(generation(tokens, stream=True)).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {worker.engine_key}"},
    )
    with urllib.request.urlopen(request, timeout=120) as stream:
        stream.readline()
        worker.signal(signal.SIGTERM)
        worker.wait_for("worker.draining", 3)
        time.sleep(1.5)
        found = record(store)
        assert found is not None
        assert found.draining
        *_, last, end = [line for line in stream.read().split(b"\n") if line]
    assert end == b"data: [DONE]"
    assert json.loads(last.removeprefix(b"data: "))["meta_info"]["completion_tokens"] == tokens
    members = worker.tree()
    assert worker.exit_code() == 0
    assert worker.events[-1]["event"] == "worker.ended"
    assert next(e for e in worker.events if e["event"] == "worker.drained")["outcome"] == "done"
    assert record(store) is None
    assert wait_until_gone(members, 2) == []


# Each of these costs an engine.


def test_a_killed_scheduler_ends_the_worker(
    tmp_path: Path, checkpoint: Path, server: RedisServer, store: redis.Redis
) -> None:
    with started(tmp_path, checkpoint, server) as worker:
        worker.wait_for("worker.registered", START_S)
        members = worker.tree()
        named(worker, "sglang::sched").kill()
        worker.wait_for("worker.deregistered", 10)
        assert record(store) is None
        assert worker.exit_code() == 1
        assert "the engine " in worker.failure()
        assert wait_until_gone(members, 2) == []


@pytest.mark.parametrize("part", ["sglang::sched", "sglang::detok"])
def test_a_stopped_part_of_the_engine_is_noticed_as_a_hang(
    tmp_path: Path, checkpoint: Path, server: RedisServer, store: redis.Redis, part: str
) -> None:
    with started(tmp_path, checkpoint, server) as worker:
        worker.wait_for("worker.registered", START_S)
        members = worker.tree()
        named(worker, part).suspend()
        worker.wait_for("worker.deregistered", HANG_TIMEOUT_S * 4 / 3 + 5)
        assert record(store) is None
        assert worker.exit_code() == 1
        assert "the engine hangs" in worker.failure()
        assert wait_until_gone(members, 2) == []


def test_a_supervisor_killed_while_it_loads_leaves_no_engine(
    tmp_path: Path, checkpoint: Path, server: RedisServer
) -> None:
    """Killed later, with the engine's children on guard, it is in `test_real_group`."""
    with started(tmp_path, checkpoint, server) as worker:
        worker.wait_for("engine.loading", START_S)
        members = worker.tree()
        worker.signal(signal.SIGKILL)
        assert wait_until_gone(members, 8) == []
