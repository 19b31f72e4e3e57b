from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from click.testing import CliRunner
from hanmaru_cli.doctor import machine_facts
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.machine_checks import judge
from hanmaru_cli.doctor.machine_facts import MachineFacts
from hanmaru_cli.main import CHECKPOINT, cli
from hanmaru_cli.marks import ENV_UP_ID
from hanmaru_cli.state import Running, StateFolder
from hanmaru_testing.doctor_world import words, worst

GIB = 1 << 30
RUN = Running(
    pid=1, up_id="abc", started_at=0.0, ready=True, http_url="http://127.0.0.1:8000", grpc_address="", metrics_url="",
    route="m", otlp_endpoint=None, temporary="/t", logs="/l",
)  # fmt: skip
WELL = MachineFacts(
    python=(3, 12), platform="linux", missing_modules=(), available_bytes=16 * GIB, state_folder=Path("/home/x"),
    state_free_bytes=20 * GIB, shm_bytes=8 * GIB, shm_free_bytes=8 * GIB, cores=4.0, load=0.5, taken_ports={},
    redis_problem="", checkpoint_problem="", running=None, is_running=False, leftovers=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "mark", "said"),
    [
        ({}, Mark.OK, ""),
        ({"platform": "darwin"}, Mark.FAIL, "Linux"),
        ({"python": (3, 14)}, Mark.FAIL, "3.11 to 3.13"),
        ({"missing_modules": ("sglang",)}, Mark.FAIL, "make setup"),
        ({"available_bytes": 4 * GIB}, Mark.WARN, "4.0 GiB"),
        ({"available_bytes": 1 * GIB}, Mark.FAIL, "1.0 GiB"),
        ({"available_bytes": 1 * GIB, "running": RUN, "is_running": True}, Mark.OK, ""),
        ({"state_free_bytes": GIB // 2}, Mark.FAIL, "HANMARU_HOME"),
        ({"shm_bytes": None}, Mark.FAIL, "/dev/shm"),
        ({"shm_free_bytes": 1 << 20}, Mark.FAIL, "--shm-size"),
        ({"cores": 1.0}, Mark.WARN, "1 cores"),
        ({"load": 6.0}, Mark.WARN, "6.0 wanted"),
        ({"taken_ports": {"REST": 8000}}, Mark.NOTE, "port 8000"),
        ({"redis_problem": "no redis-server"}, Mark.FAIL, "6.2"),
        ({"checkpoint_problem": "no config.json"}, Mark.FAIL, "--checkpoint"),
        ({"running": RUN}, Mark.NOTE, "was killed"),
        ({"leftovers": ("77 raylet", "78 gcs")}, Mark.FAIL, "kill -9 77 78"),
    ],
)  # fmt: skip
def test_what_keeps_a_machine_from_running_it_is_named(changed: dict[str, Any], mark: Mark, said: str) -> None:
    findings = judge(replace(WELL, **changed))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_a_process_that_a_killed_run_left_is_found_and_one_of_a_live_run_is_not(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        sleeper, env={**os.environ, ENV_UP_ID: "left-over"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = machine_facts.look(tmp_path, CHECKPOINT).leftovers
        assert [line for line in left if line.startswith(f"{process.pid} ")]
        state = StateFolder(tmp_path)
        state.prepare()
        started_at = psutil.Process().create_time()
        state.write_running(msgspec.structs.replace(RUN, pid=os.getpid(), up_id="left-over", started_at=started_at))
        facts = machine_facts.look(tmp_path, CHECKPOINT)
        assert facts.is_running
        assert not [line for line in facts.leftovers if line.startswith(f"{process.pid} ")]
        process.communicate("\n", timeout=30)


def test_without_a_kubeconfig_it_looks_at_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HANMARU_HOME", str(tmp_path))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.stdout.startswith("this machine\n")


def test_a_laptop_and_a_cluster_at_once_is_a_wrong_command_line() -> None:
    assert CliRunner().invoke(cli, ["doctor", "--laptop", "--context", "x"]).exit_code == 2


def test_a_laptop_needs_no_package_that_speaks_to_a_cluster() -> None:
    blocked = "import sys\nfor name in ('httpx2', 'kopf', 'lightkube'): sys.modules[name] = None\n"
    blocked += "sys.argv = ['hanmaru', 'doctor', '--laptop']\nfrom hanmaru_cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=30, check=False)
    assert "this machine" in run.stdout
    assert "Traceback" not in run.stderr
