"""The main job as its users meet it: `hanmaru up`, requests of every kind, one trace, Ctrl-C, nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hanmaru_cli import ports
from hanmaru_cli.marks import ENV_UP_ID, kill_marked, marked
from hanmaru_cli.state import Running, StateFolder
from hanmaru_testing.go_programs import BUILD_DEADLINE_S
from hanmaru_testing.main_job import Target, run_checks, target_of
from hanmaru_testing.otlp_collector import OtlpCollector

UP_DEADLINE_S = 240.0
"""The bar is 90 s on two idle cores; a test run shares them."""
END_DEADLINE_S = 120.0
"""Gateway, worker and engine end one after the other; an engine may take 20 s by itself."""
FIRST_PORT = 27_500


@dataclass
class Up:
    process: subprocess.Popen[bytes]
    state: StateFolder
    output: Path
    collector: OtlpCollector

    def running(self) -> Running:
        running = self.state.read_running()
        assert running is not None, self.output.read_text()
        return running

    def target(self) -> Target:
        return target_of(self.running(), self.state)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    wanted = ("--http-port", "--grpc-port", "--metrics-port", "--redis-port", "--ray-port", "--engine-port")
    chosen = ports.choose(dict.fromkeys((*wanted, "--supervisor-port"), FIRST_PORT), ports.is_free)
    arguments = [text for name, port in chosen.items() for text in (name, str(port))]
    with ExitStack() as stack:
        collector = stack.enter_context(OtlpCollector())
        output = folder / "output"
        process = subprocess.Popen(
            [sys.executable, "-m", "hanmaru_cli", "up", "--otlp-endpoint", collector.endpoint, *arguments],
            env={**os.environ, "HANMARU_HOME": str(folder / "home")},
            stdout=stack.enter_context(output.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        state = StateFolder(folder / "home")
        try:
            deadline = time.monotonic() + UP_DEADLINE_S
            while (running := state.read_running()) is None or not running.ready:
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.5)
            yield Up(process, state, output, collector)
        finally:
            left = state.read_running()
            process.kill()
            process.wait()
            if left is not None:  # it failed before it ended by itself
                kill_marked({ENV_UP_ID: left.up_id})
                shutil.rmtree(left.temporary, ignore_errors=True)


@pytest.mark.timeout(BUILD_DEADLINE_S + UP_DEADLINE_S + 240)
def test_the_main_job_works_for_its_users_and_ends_without_a_trace(up: Up) -> None:
    outcomes = list(run_checks(up.target(), up.collector))
    assert all(outcome.is_ok for outcome in outcomes), "\n".join(map(str, outcomes))

    running = up.running()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(END_DEADLINE_S) == 0, up.output.read_text()
    assert not marked({ENV_UP_ID: running.up_id})
    assert not Path(running.temporary).exists()
    assert "killed" not in up.output.read_text().lower()
