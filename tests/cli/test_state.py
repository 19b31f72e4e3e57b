from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from hanmaru_cli.state import Running, StateFolder, home
from hanmaru_contracts.errors import ErrorCode, HanmaruError

RUNNING = Running(
    pid=os.getpid(),
    up_id="abc",
    started_at=psutil.Process().create_time(),
    ready=True,
    http_url="http://127.0.0.1:8000",
    grpc_address="127.0.0.1:9000",
    metrics_url="http://127.0.0.1:9090/metrics",
    route="tiny",
    otlp_endpoint=None,
    temporary="/tmp/x",
    logs="/tmp/y",
)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "home")
    folder.prepare()
    return folder


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, Path.home() / ".cache/hanmaru"), ({"HANMARU_HOME": "/x"}, Path("/x")), ({"HANMARU_HOME": ""}, None)],
)
def test_home_is_the_environments_or_the_users_cache(environment: dict[str, str], expected: Path | None) -> None:
    assert home(environment) == (expected or Path.home() / ".cache/hanmaru")


def test_only_the_owner_may_read_anything(state: StateFolder) -> None:
    state.keep("secret", lambda: "s")
    state.write(state.root / "file", "content")
    lock = state.try_lock()
    assert lock is not None
    os.close(lock)
    for path in (state.root, *state.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_secret_is_made_once_and_kept(state: StateFolder) -> None:
    assert [state.keep("secret", lambda: "first"), state.keep("secret", lambda: "second")] == ["first", "first"]


def test_an_empty_secret_file_left_by_a_full_disk_is_made_anew(state: StateFolder) -> None:
    (state.root / "secret").touch()
    assert state.keep("secret", lambda: "made") == "made"


def test_one_run_at_a_time_holds_the_lock(state: StateFolder) -> None:
    first = state.try_lock()
    assert first is not None
    assert state.try_lock() is None
    os.close(first)
    again = state.try_lock()
    assert again is not None
    os.close(again)


def test_the_lock_of_a_killed_run_is_free(state: StateFolder) -> None:
    hold = "import sys, time; from pathlib import Path; from hanmaru_cli.state import StateFolder\n"
    hold += "assert StateFolder(Path(sys.argv[1])).try_lock(); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(state.root.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert state.try_lock() is None
        holder.kill()
    lock = state.try_lock()
    assert lock is not None
    os.close(lock)


def test_what_runs_is_read_back_until_forgotten(state: StateFolder) -> None:
    assert state.read_running() is None
    state.write_running(RUNNING)
    assert state.read_running() == RUNNING
    state.forget_running()
    state.forget_running()
    assert state.read_running() is None


def test_a_damaged_record_counts_as_none(state: StateFolder) -> None:
    state.running.write_text('{"pid": ')
    assert state.read_running() is None


def test_another_process_with_the_same_number_is_not_the_run() -> None:
    assert RUNNING.lives()
    assert not msgspec.structs.replace(RUNNING, started_at=RUNNING.started_at - 3600).lives()
    assert not msgspec.structs.replace(RUNNING, pid=2**22 + 1).lives()


def test_a_home_that_cannot_be_written_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HanmaruError, match="set HANMARU_HOME to a folder that can be written") as raised:
        StateFolder(tmp_path / "file").prepare()
    assert raised.value.code is ErrorCode.CONFIGURATION


def test_a_full_disk_is_said_and_leaves_no_half_written_file(state: StateFolder) -> None:
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, bounds[1]))  # a write past it fails, as on a full disk
    try:
        with pytest.raises(HanmaruError, match="free space there"):
            state.write(state.root / "file", "content")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert not [path for path in state.root.iterdir() if path.is_file()]
