"""A worker's whole life around a scripted engine and a real Redis; `test_real_worker` has the same with SGLang."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from hanmaru_contracts import names, redis_keys
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.names import ReplicaId
from hanmaru_contracts.wire.engine_spec import EngineSpec
from hanmaru_contracts.wire.worker import Load, WorkerRecord, unseal
from hanmaru_testing.engine import free_loopback_port
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.scripted_engine import ENV_SCRIPT, scripted_engine_path
from hanmaru_testing.scripted_furiosa import ENV_STATE, State, scripted_furiosa_path
from hanmaru_testing.worker_process import (
    PLATFORM_SECRET,
    WorkerFiles,
    WorkerProcess,
    free_port_run,
    running_worker,
    wait_until_gone,
    write_worker_files,
)

MODEL = ModelRef(namespace="team", name="tiny")
LEASE = redis_keys.worker_lease(MODEL.id, ReplicaId("worker-0"))
START_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


class Bench:
    """Makes workers around scripted engines in one folder."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self._python_path = scripted_engine_path(folder / "packages")
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        for name, content in (
            ("tokenizer.json", {}),
            ("tokenizer_config.json", {"chat_template": "T"}),
            ("config.json", {"sliding_window": 128, "layer_types": ["sliding_attention"]}),
        ):
            (checkpoint / name).write_text(json.dumps(content))

    def spec(self, **fields: Any) -> EngineSpec:
        defaults: dict[str, Any] = {
            "model": MODEL,
            "route": "tiny",
            "checkpoint": str(self.folder / "checkpoint"),
            "context_tokens": 4096,
            "http_port": free_loopback_port(),
            "supervisor_port": free_loopback_port(),
            "startup_timeout_s": 30.0,
            "hang_timeout_s": 4.0,
            "drain_timeout_s": 30.0,
        }
        return EngineSpec(**defaults | fields)

    def files(
        self, spec: EngineSpec | None = None, script: dict[str, Any] | None = None, **variables: str
    ) -> WorkerFiles:
        return write_worker_files(
            self.folder / f"worker{variables.get(names.ENV_GROUP_RANK, '')}",
            spec or self.spec(),
            variables.pop("redis_url", self.redis_url),
            PYTHONPATH=self._python_path,
            TMPDIR=str(self.folder),
            **{ENV_SCRIPT: json.dumps(script or {})},
            **variables,
        )

    def worker(self, **fields: Any) -> AbstractContextManager[WorkerProcess]:
        """`script` is how the engine starts; everything else is the spec's."""
        script = fields.pop("script", None)
        return running_worker(self.files(self.spec(**fields), script))


@pytest.fixture
def bench(tmp_path: Path, server: RedisServer, store: redis.Redis) -> Bench:
    return Bench(tmp_path, server.url)


def tell_engine(worker: WorkerProcess, **script: Any) -> None:
    try:
        worker.get(f"{worker.engine_url}/script", body=script)
    except OSError:
        assert script.get("exit_status") is not None


def record(store: redis.Redis) -> WorkerRecord | None:
    sealed: Any = store.get(LEASE)
    return sealed and unseal(sealed, PLATFORM_SECRET, MODEL.id, ReplicaId("worker-0"), int(time.time() * 1000))


def await_record(store: redis.Redis, deadline_s: float = 5.0, **wanted: Any) -> WorkerRecord:
    """The first record whose fields are as wanted."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        found = record(store)
        if found is not None and all(getattr(found, name) == value for name, value in wanted.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no record with {wanted} within {deadline_s} s; the last was {record(store)}")


def registered(worker: WorkerProcess) -> WorkerProcess:
    worker.wait_for("worker.registered", START_S)
    return worker


# Starting.


def test_a_worker_is_ready_once_it_is_registered(bench: Bench, store: redis.Redis) -> None:
    with bench.worker(script={"answers_tokens": False}) as worker:
        worker.wait_for("engine.started", START_S)
        assert worker.get(f"{worker.supervisor_url}/health")[0] == 200
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 503
        assert record(store) is None
    with bench.worker() as worker:
        registered(worker)
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 200
        found = await_record(store, draining=False)
        assert found.address == f"127.0.0.1:{worker.files.spec.http_port}"
        assert found.capabilities.sliding_window_tokens == 128
        assert store.exists(redis_keys.artifact(MODEL.id, found.artifact))
        status, page = worker.get(f"{worker.supervisor_url}/metrics")
        assert status == 200
        assert b"hanmaru_worker_registered 1.0" in page
        assert b"sglang:num_running_reqs" in page


def test_keys_are_in_one_private_file_that_is_gone_when_the_engine_serves(bench: Bench) -> None:
    with bench.worker(script={"answers_tokens": False}) as worker:
        worker.wait_for("engine.started", START_S)
        (keys_file,) = bench.folder.glob("hanmaru-worker-*/keys.yaml")
        assert keys_file.stat().st_mode & 0o777 == 0o600
        assert keys_file.parent.stat().st_mode & 0o777 == 0o700
        held = json.loads(keys_file.read_text())
        assert held["api-key"] == worker.engine_key
        assert len({*held.values()}) == 2
        members = worker.tree()
        worker.signal(signal.SIGKILL)
        assert wait_until_gone(members, 8) == []
        assert not keys_file.parent.exists()
    with bench.worker() as worker:
        registered(worker)
        assert list(bench.folder.glob("hanmaru-worker-*/*")) == []
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
        assert list(bench.folder.glob("hanmaru-worker-*")) == []


def test_an_engine_that_shows_its_admin_routes_is_never_registered(bench: Bench, store: redis.Redis) -> None:
    with bench.worker(script={"shows_admin_routes": True}) as worker:
        assert worker.exit_code() == 1
        assert "admin routes" in worker.failure()
        assert record(store) is None


def test_an_engine_that_does_not_start_says_why(bench: Bench) -> None:
    with bench.worker(script={"exit_status": 7}) as worker:
        assert worker.exit_code() == 1
        assert "ended by itself with status 7" in worker.failure()
        assert str(worker.files.log_dir / "engine-worker-0-0.log") in worker.failure()
        (event,) = [event for event in worker.events if event["event"] == "engine.failed"]
        assert "my last words" in event["tail"]


def test_an_engine_without_a_token_in_time_is_given_up(bench: Bench) -> None:
    with bench.worker(script={"answers_tokens": False}, startup_timeout_s=3.0) as worker:
        assert worker.exit_code() == 1
        assert "no token within startupTimeoutSeconds=3" in worker.failure()


@pytest.mark.parametrize("port", ["http_port", "supervisor_port"])
def test_a_taken_port_is_said_before_the_engine_starts(bench: Bench, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, bench.worker(**{port: other.getsockname()[1]}) as worker:
        assert worker.exit_code() == 2
        assert "the port is taken" in worker.failure()
        assert "engine.started" not in [event["event"] for event in worker.events]


def test_a_log_that_cannot_be_written_is_said(bench: Bench) -> None:
    blocked = bench.folder / "blocked"
    blocked.write_text("a file where a folder should be")
    with running_worker(bench.files(**{names.ENV_LOG_DIR: str(blocked / "logs")})) as worker:
        assert worker.exit_code() == 2
        assert "cannot write the engine's log" in worker.failure()


# Serving.


def test_the_load_is_reported_within_two_seconds(bench: Bench, store: redis.Redis) -> None:
    with bench.worker() as worker:
        tell_engine(registered(worker), running=3, queued=2, kv_load=0.5)
        await_record(store, 2.5, load=Load(running_requests=3, queued_requests=2, kv_load_ratio=0.5))


def test_a_dying_engine_is_deregistered_at_once(bench: Bench, store: redis.Redis) -> None:
    with bench.worker() as worker:
        tell_engine(registered(worker), exit_status=9)
        worker.wait_for("worker.deregistered", 3)
        assert record(store) is None
        assert worker.exit_code() == 1
        assert "ended by itself with status 9" in worker.failure()


@pytest.mark.parametrize(
    ("script", "message"),
    [({"scheduler_moves": False}, "scheduler has not moved"), ({"answers_tokens": False}, "asked for a token")],
)
def test_a_hanging_engine_is_deregistered_and_ended(
    bench: Bench, store: redis.Redis, script: dict[str, Any], message: str
) -> None:
    with bench.worker() as worker:
        tell_engine(registered(worker), **script)
        began = time.monotonic()
        members = worker.tree()[1:]
        assert worker.exit_code() == 1
        assert time.monotonic() - began < 15
        assert "the engine hangs" in worker.failure()
        assert message in worker.failure()
        assert record(store) is None
        assert wait_until_gone(members, 2) == []


def test_a_redis_that_comes_back_empty_is_filled_again(bench: Bench) -> None:
    with RedisServer() as own, running_worker(bench.files(redis_url=own.url)) as worker:
        registered(worker)
        own.stop()
        worker.wait_for("redis.lost", 5)
        time.sleep(6)  # longer than the lease
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 503
        own.start()
        worker.wait_for("worker.registered", 5)
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 200
        own.restart_empty()
        worker.wait_for("worker.registered", 5)
        with own.client() as client:
            found = await_record(client)
            assert client.exists(redis_keys.artifact(MODEL.id, found.artifact))


def test_a_worker_waits_for_a_redis_that_is_not_there_yet(bench: Bench) -> None:
    with RedisServer() as own:
        own.stop()
        with running_worker(bench.files(redis_url=own.url)) as worker:
            worker.wait_for("redis.lost", START_S)
            own.start()
            worker.wait_for("worker.registered", 5)


def test_a_worker_stopped_past_its_lease_registers_anew(bench: Bench, store: redis.Redis) -> None:
    with bench.worker() as worker:
        registered(worker).signal(signal.SIGSTOP)
        time.sleep(6.5)
        assert record(store) is None
        worker.signal(signal.SIGCONT)
        assert worker.wait_for("worker.resumed", 5)["gap_s"] > 5
        worker.wait_for("worker.registered", 5)
        await_record(store)


def test_a_worker_whose_engine_froze_while_it_was_stopped_does_not_register(bench: Bench, store: redis.Redis) -> None:
    with bench.worker() as worker:
        registered(worker)
        tell_engine(worker, answers_tokens=False)
        worker.signal(signal.SIGSTOP)
        time.sleep(6.5)
        worker.signal(signal.SIGCONT)
        worker.wait_for("worker.resumed", 5)
        assert worker.exit_code() == 1
        assert [event["event"] for event in worker.events].count("worker.registered") == 1
        assert record(store) is None


# Ending.


def test_a_drain_waits_for_running_requests(bench: Bench, store: redis.Redis) -> None:
    with bench.worker() as worker:
        tell_engine(registered(worker), running=1)
        await_record(store, load=Load(running_requests=1))
        worker.signal(signal.SIGTERM)
        await_record(store, 1.0, draining=True)
        time.sleep(6)  # past the lease: it is still renewed
        await_record(store, 0.5, draining=True)
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 503
        tell_engine(worker, running=0)
        worker.wait_for("worker.deregistered", 6)
        assert record(store) is None
        assert worker.exit_code() == 0


def test_a_drain_ends_at_its_deadline(bench: Bench, store: redis.Redis) -> None:
    with bench.worker(drain_timeout_s=3.0) as worker:
        tell_engine(registered(worker), running=2)
        await_record(store, load=Load(running_requests=2))
        worker.signal(signal.SIGTERM)
        drained = worker.wait_for("worker.drained", 8)
        assert (drained["outcome"], drained["requests_left"]) == ("timed_out", 2)
        assert worker.exit_code() == 0
        assert record(store) is None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(bench: Bench, store: redis.Redis, second: signal.Signals) -> None:
    with bench.worker() as worker:
        tell_engine(registered(worker), running=1)
        worker.signal(signal.SIGTERM)
        worker.wait_for("worker.draining", 3)
        members = worker.tree()[1:]
        worker.signal(second)
        assert worker.exit_code(5) == 0
        assert record(store) is None
        assert wait_until_gone(members, 2) == []


def test_a_worker_that_is_still_loading_ends_at_once(bench: Bench) -> None:
    with bench.worker(script={"answers_tokens": False}) as worker:
        worker.wait_for("engine.started", START_S)
        worker.signal(signal.SIGTERM)
        assert worker.exit_code(5) == 0


def test_a_killed_supervisor_leaves_no_engine_behind(bench: Bench) -> None:
    with bench.worker(script={"strays": True, "ignores_sigterm": True}) as worker:
        registered(worker)
        members = worker.tree()
        assert len(members) >= 5
        worker.signal(signal.SIGKILL)
        assert wait_until_gone(members, 8) == []


# Another engine.


def test_furiosa_llm_serves_behind_its_doors(bench: Bench, store: redis.Redis) -> None:
    spec = bench.spec(engine="FuriosaLLM", device="npu", drain_timeout_s=1.0)
    path = scripted_furiosa_path(bench.folder / "furiosa")
    with running_worker(bench.files(spec), {"PYTHONPATH": path}) as worker:
        registered(worker)
        await_record(store, load=Load(running_requests=2, queued_requests=1, kv_load_ratio=0.5))
        key = worker.engine_key
        command_lines = [" ".join(member.cmdline()) for member in worker.tree()]
        assert any("hanmaru_worker.furiosa_main" in line for line in command_lines)
        assert not [line for line in command_lines if key in line]
        assert worker.get(f"{worker.engine_url}/version", key=key)[0] == 401
        chat = f"{worker.engine_url}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": ""}], "input_ids": [5, 6, 7]}
        assert worker.get(chat, body=body)[0] == 401
        assert json.loads(worker.get(chat, key=key, body=body)[1]) == {"prompt_token_ids": [5, 6, 7]}
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    log = (worker.files.log_dir / "engine-worker-0-0.log").read_text()
    assert key not in log


def furiosa(bench: Bench, state: State) -> tuple[AbstractContextManager[WorkerProcess], Path]:
    """A worker with the stand-in, and the file that tells the latter what to do."""
    file = bench.folder / "state.json"
    state.write(file)
    spec = bench.spec(engine="FuriosaLLM", device="npu", drain_timeout_s=1.0)
    variables = {"PYTHONPATH": scripted_furiosa_path(bench.folder / "furiosa"), ENV_STATE: str(file)}
    return running_worker(bench.files(spec), variables), file


def test_furiosa_llm_is_registered_with_its_first_token_and_its_load_follows_its_metrics(
    bench: Bench, store: redis.Redis
) -> None:
    started, file = furiosa(bench, State(loads_weights=True))
    with started as worker:
        worker.wait_for("engine.started", START_S)
        await_status(worker, f"{worker.engine_url}/health")
        assert worker.get(f"{worker.supervisor_url}/ready")[0] == 503
        assert record(store) is None, "it listens, and has made no token"
        State(running=0, waiting=0, cache_used=0.0).write(file)
        registered(worker)
        await_record(store, load=Load())
        State(running=7, waiting=3, cache_used=0.75).write(file)
        await_record(store, load=Load(running_requests=7, queued_requests=3, kv_load_ratio=0.75))
        models = json.loads(worker.get(f"{worker.engine_url}/v1/models", key=worker.engine_key)[1])
        assert [model["id"] for model in models["data"]] == ["tiny"]


def test_a_furiosa_llm_that_answers_nothing_any_more_is_deregistered_and_ended(
    bench: Bench, store: redis.Redis
) -> None:
    started, file = furiosa(bench, State())
    with started as worker:
        registered(worker)
        State(is_stuck=True).write(file)
        assert worker.exit_code() == 1
        assert "the engine hangs" in worker.failure()
        assert record(store) is None


def test_a_furiosa_worker_of_a_group_of_two_says_that_it_cannot(bench: Bench) -> None:
    spec = bench.spec(engine="FuriosaLLM", device="npu")
    with running_worker(group_files(bench, spec, 0)) as worker:
        assert worker.exit_code() == 2
        assert "furiosa-llm runs on one machine" in worker.failure()


# Groups.


def group_spec(bench: Bench) -> EngineSpec:
    first = free_port_run(4)
    return bench.spec(http_port=first, supervisor_port=first + 2)


def group_files(bench: Bench, spec: EngineSpec, rank: int, **variables: str) -> WorkerFiles:
    """The scripted engine meets nobody, so any address of that host does."""
    places = {names.ENV_GROUP_SIZE: "2", names.ENV_GROUP_ADDRESS: "127.0.0.1:9"}
    return bench.files(spec, **{names.ENV_GROUP_RANK: str(rank)}, **places, **variables)


def await_ready(url: str, worker: WorkerProcess) -> None:
    await_status(worker, f"{url}/ready")


def await_status(worker: WorkerProcess, url: str, deadline_s: float = 20.0) -> None:
    """Until it answers with 200."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError):
            if worker.get(url)[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer with 200 within {deadline_s} s")


def test_a_rank_above_0_registers_nothing_and_ends_when_rank_0_is_gone(bench: Bench, store: redis.Redis) -> None:
    spec = group_spec(bench)
    with running_worker(group_files(bench, spec, 0)) as leader, running_worker(group_files(bench, spec, 1)) as follower:
        registered(leader)
        url = f"http://127.0.0.1:{spec.supervisor_port + 1}"
        await_ready(url, follower)
        assert json.loads(follower.get(f"{url}/health")[1])["rank"] == 1
        assert store.zcard(redis_keys.workers(MODEL.id)) == 1
        leader.signal(signal.SIGKILL)
        began = time.monotonic()
        assert follower.exit_code() == 1
        assert 8 < time.monotonic() - began < 16
        assert "rank 0 of the group has been gone for 10 s" in follower.failure()


def test_engines_of_a_group_start_when_all_ranks_are_there_and_hear_no_others(bench: Bench) -> None:
    spec = group_spec(bench)
    peers = {names.ENV_GROUP_PEERS: "localhost,127.0.0.1"}
    with running_worker(group_files(bench, spec, 0, **peers)) as leader:
        await_status(leader, f"{leader.supervisor_url}/health")
        assert "engine.started" not in [event["event"] for event in leader.events]
        with running_worker(group_files(bench, spec, 1, **peers)) as follower:
            pid = leader.wait_for("engine.started", START_S)["pid"]
            follower.wait_for("engine.started", START_S)
            assert psutil.Process(pid).environ()["SGLANG_ZMQ_ALLOWED_PEERS"] == "127.0.0.1,::1"


def test_a_rank_that_waits_for_the_others_ends_at_once_when_asked(bench: Bench) -> None:
    spec = group_spec(bench)
    with running_worker(group_files(bench, spec, 0, **{names.ENV_GROUP_PEERS: "127.0.0.1,127.0.0.1"})) as leader:
        await_status(leader, f"{leader.supervisor_url}/health")
        leader.signal(signal.SIGTERM)
        assert leader.exit_code(5) == 0
        assert "engine.started" not in [event["event"] for event in leader.events]


def test_a_group_drains_as_one(bench: Bench) -> None:
    spec = group_spec(bench)
    with running_worker(group_files(bench, spec, 0)) as leader, running_worker(group_files(bench, spec, 1)) as follower:
        registered(leader)
        await_ready(f"http://127.0.0.1:{spec.supervisor_port + 1}", follower)
        tell_engine(leader, running=1)
        leader.signal(signal.SIGTERM)
        follower.signal(signal.SIGTERM)
        time.sleep(6)
        assert follower.process.poll() is None  # rank 0's request needs it
        tell_engine(leader, running=0)
        assert leader.exit_code() == 0
        assert follower.exit_code(10) == 0
