"""Starting, staying and ending, with stand-ins for the parts; `tests/smoke` does it with the real ones."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hanmaru_cli.marks import ENV_UP_ID, ENV_UP_PART, kill_marked, marked
from hanmaru_cli.state import Running, StateFolder

FIRST_PORT = 27_100
DRIVER = str(Path(__file__).with_name("stand_in_up.py"))
CLI = [sys.executable, "-m", "hanmaru_cli"]
DEADLINE_S = 30.0


def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what}"
        time.sleep(0.05)


@dataclass
class Up:
    """One run of the driver, and the folder it works in."""

    process: subprocess.Popen[bytes]
    home: Path
    output: Path

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.home)

    def said(self) -> str:
        return self.output.read_text()

    def running(self) -> Running:
        running = self.state.read_running()
        assert running is not None, self.said()
        return running

    def journal(self) -> list[str]:
        return (self.state.root / "journal").read_text().splitlines()

    def wait_until_up(self) -> Running:
        until(lambda: "Hanmaru is up" in self.said(), "up", DEADLINE_S)
        return self.running()


def start(home: Path, output: Path, **stand_ins: str) -> Up:
    environment = {**os.environ, "HANMARU_HOME": str(home)}
    environment |= {f"STAND_IN_{part.upper()}": arguments for part, arguments in stand_ins.items()}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, DRIVER, str(FIRST_PORT)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Up(process, home, output)


@contextmanager
def running_up(tmp_path: Path, **stand_ins: str) -> Iterator[Up]:
    up = start(tmp_path / "home", tmp_path / "output", **stand_ins)
    try:
        yield up
    finally:
        running = up.state.read_running()
        up.process.kill()
        up.process.wait()
        if running is not None:  # the guard included, so its work is ours
            kill_marked({ENV_UP_ID: running.up_id})
            shutil.rmtree(running.temporary, ignore_errors=True)


def assert_nothing_left(running: Running) -> None:
    assert not marked({ENV_UP_ID: running.up_id})
    assert not Path(running.temporary).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_in_order_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running_up(tmp_path, gateway="--daemon", worker_0="--daemon") as up:
        running = up.wait_until_up()
        assert up.process.poll() is None
        up.process.send_signal(number)
        assert up.process.wait(DEADLINE_S) == 0, up.said()
        assert [line.split()[:2] for line in up.journal()[-3:]] == [
            ["end", "gateway"],
            ["end", "worker-0"],
            ["end", "redis"],
        ]
        assert_nothing_left(running)
        assert up.state.read_running() is None


def test_what_is_needed_to_ask_is_printed(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        running = up.wait_until_up()
        key = (up.state.root / "demo.key").read_text().strip()
        for wanted in (f"curl {running.http_url}/v1", f'api_key="{key}"', running.grpc_address, running.logs):
            assert wanted in up.said()


def test_a_key_stays_the_same_from_run_to_run(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with running_up(tmp_path) as up:
            up.wait_until_up()
            keys.append((up.state.root / "demo.key").read_text())
            up.process.send_signal(signal.SIGINT)
            assert up.process.wait(DEADLINE_S) == 0
    assert keys[0] == keys[1]


def test_a_killed_up_leaves_nothing_and_the_next_one_starts(tmp_path: Path) -> None:
    with running_up(tmp_path, gateway="--daemon", worker_0="--daemon --stubborn") as up:
        running = up.wait_until_up()
        assert len(marked({ENV_UP_ID: running.up_id})) == 6  # three parts, two that they left, the guard
        up.process.kill()
        up.process.wait()
        with running_up(tmp_path) as following:  # waits until the guard has let go of the lock
            following.wait_until_up()
            assert "an earlier run was killed" in following.said()
            assert_nothing_left(running)


def test_an_up_killed_with_its_guard_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    with running_up(tmp_path, gateway="--daemon") as up:
        running = up.wait_until_up()
        up.process.send_signal(signal.SIGSTOP)  # so that it cannot start another guard
        for process in marked({ENV_UP_ID: running.up_id}):
            if ENV_UP_PART not in process.environ():
                process.kill()
        up.process.kill()
        up.process.wait()
        with running_up(tmp_path) as following:
            following.wait_until_up()
            assert_nothing_left(running)


def test_a_killed_guard_is_replaced(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        mark = {ENV_UP_ID: up.wait_until_up().up_id}

        def guards() -> list[psutil.Process]:
            return [process for process in marked(mark) if ENV_UP_PART not in process.environ()]

        before = guards()[0]
        before.kill()
        until(lambda: any(guard != before for guard in guards()), "another guard")


def test_a_second_up_says_where_the_first_is(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        running = up.wait_until_up()
        second = start(up.home, tmp_path / "second")
        assert second.process.wait(DEADLINE_S) == 0
        assert f"already up: {running.http_url}" in second.said()
        assert up.process.poll() is None


def test_down_ends_it_from_another_shell(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        running = up.wait_until_up()
        down = subprocess.run(
            [*CLI, "down"], env={**os.environ, "HANMARU_HOME": str(up.home)}, capture_output=True, timeout=DEADLINE_S
        )
        assert (down.returncode, down.stdout.splitlines()[-1]) == (0, b"Ended.")
        assert up.process.wait(DEADLINE_S) == 0
        assert_nothing_left(running)


def test_down_with_nothing_running_says_so(tmp_path: Path) -> None:
    down = subprocess.run(
        [*CLI, "down"], env={**os.environ, "HANMARU_HOME": str(tmp_path)}, capture_output=True, timeout=DEADLINE_S
    )
    assert (down.returncode, down.stdout) == (0, b"Nothing is running.\n")


def test_a_taken_port_is_said_and_the_next_one_used(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", FIRST_PORT))
        taken.listen()
        with running_up(tmp_path) as up:
            running = up.wait_until_up()
            assert f"port {FIRST_PORT} is taken: gateway HTTP uses" in up.said()
            assert running.http_url != f"http://127.0.0.1:{FIRST_PORT}"


def test_a_part_that_cannot_start_ends_the_whole_with_the_reason(tmp_path: Path) -> None:
    with running_up(tmp_path, worker_0="--fail") as up:
        assert up.process.wait(DEADLINE_S) == 1
        assert "worker-0 ended (exit status 3) while it started" in up.said()
        assert "the reason why" in up.said()
        assert up.state.read_running() is None


@pytest.mark.parametrize("name", ["redis", "worker-0", "gateway"])
def test_a_part_that_dies_comes_back_and_it_is_said(tmp_path: Path, name: str) -> None:
    with running_up(tmp_path) as up:
        mark = {ENV_UP_ID: up.wait_until_up().up_id, ENV_UP_PART: name}
        (before,) = marked(mark)
        before.kill()
        until(lambda: [line.split()[1] for line in up.journal()].count(name) == 2, f"{name} again")
        assert f"{name} ended (killed by SIGKILL); it starts again in 1 s" in up.said()
        assert len(marked(mark)) == 1


def test_asking_twice_kills_what_does_not_end(tmp_path: Path) -> None:
    with running_up(tmp_path, gateway="--stubborn --daemon") as up:
        running = up.wait_until_up()
        up.process.send_signal(signal.SIGINT)
        until(lambda: "Ctrl-C again" in up.said(), "the end begins")
        time.sleep(0.6)  # a person's second Ctrl-C, not the echo of the first
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(8.0) == 0
        assert_nothing_left(running)


@contextmanager
def on_a_terminal(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The driver as the foreground job of a terminal, and the terminal's other end."""
    ours, its = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, DRIVER, str(FIRST_PORT)],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "HANMARU_HOME": str(home)},
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()


def read_until(terminal: int, words: str) -> str:
    said = b""
    while words.encode() not in said:
        assert select.select([terminal], [], [], DEADLINE_S)[0], said
        said += os.read(terminal, 4096)
    return said.decode()


def test_ctrl_c_at_a_terminal_ends_all_in_order(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "home")
    with on_a_terminal(tmp_path / "home") as (process, terminal):
        said = read_until(terminal, "Ctrl-C here")
        assert "\r\x1b[2K" in said  # one live line
        running = state.read_running()
        assert running is not None
        os.write(terminal, b"\x03")
        read_until(terminal, "Ended.")
        assert process.wait(DEADLINE_S) == 0
        os.close(terminal)
        assert [line.split()[1] for line in (state.root / "journal").read_text().splitlines()[-3:]] == [
            "gateway",
            "worker-0",
            "redis",
        ]
        assert_nothing_left(running)


def test_a_terminal_that_is_closed_ends_all(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "home")
    with on_a_terminal(tmp_path / "home") as (process, terminal):
        read_until(terminal, "Ctrl-C here")
        running = state.read_running()
        assert running is not None
        os.close(terminal)  # the kernel sends SIGHUP; nothing can be printed any more
        assert process.wait(DEADLINE_S) == 0
        assert_nothing_left(running)


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    up = start(tmp_path / "home", tmp_path / "output")
    assert up.process.wait(DEADLINE_S) == 1
    assert up.said().startswith("cannot write below")
    assert len(up.said().splitlines()) == 1
