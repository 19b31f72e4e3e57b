"""Nothing of a cluster with real nodes is left on the machine, whichever of its processes is killed, and in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hanmaru_cluster import cgroups, records
from hanmaru_cluster.build import find_programs
from hanmaru_cluster.containerd import PAUSE_IMAGE

END_DEADLINE_S = 20.0
POD = f"""{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "p"}},
 "spec": {{"containers": [{{"name": "c", "image": "{PAUSE_IMAGE}"}}]}}}}"""


class Up:
    """`python -m hanmaru_cluster real up` in a process of its own, with a pod in it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hanmaru_cluster", "real", "up", "--node=only,nvidia.com/gpu=8"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.kubeconfig = next(line for line in lines if line.startswith("KUBECONFIG=")).partition("=")[2].strip()
        self.record = next(record for record in records.known() if record.owner == self.process.pid)
        self.keeper = psutil.Process(self.record.keeper)
        self.init = psutil.Process(self.record.init)
        self.stand_by = next(child for child in self.keeper.children() if child != self.init)
        self.supervisor = next(child for child in self.init.children() if "keeper" in " ".join(child.cmdline()))
        self.everything = [self.keeper, *self.keeper.children(recursive=True)]

    def run_a_pod(self) -> None:
        kubectl = [str(find_programs().kubectl), "--kubeconfig", self.kubeconfig]
        subprocess.run([*kubectl, "apply", "-f", "-"], input=POD, text=True, check=True, capture_output=True)
        wait = ["wait", "--for=condition=Ready", "pod/p", "--timeout=30s"]
        subprocess.run([*kubectl, *wait], check=True, capture_output=True)
        self.everything = [self.keeper, *self.keeper.children(recursive=True)]
        assert {"pause", "containerd-shim-runc-v2", "kubelet"} <= {process.name() for process in self.everything}

    def traces(self) -> list[str]:
        """What is still there."""
        name = self.record.name
        return [
            *(str(process) for process in self.everything if process.is_running()),
            *(str(tree.root / name) for tree in cgroups.mounted() if (tree.root / name).exists()),
            *(str(file) for file in Path("/sys/block").glob("loop*/loop/backing_file") if name in file.read_text()),
            *(line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line),
            *(str(file) for file in (self.record.folder, self.record.file) if file.exists()),
        ]

    def await_no_trace(self) -> None:
        deadline_s = time.monotonic() + END_DEADLINE_S
        while left := self.traces():
            assert time.monotonic() < deadline_s, left
            time.sleep(0.2)

    def await_only_files(self) -> None:
        assert not psutil.wait_procs(self.everything, END_DEADLINE_S)[1]


@pytest.fixture
def up(real_machine: None) -> Iterator[Up]:
    started = Up()
    yield started
    started.process.kill()
    started.process.wait()
    started.await_no_trace()


KILLED: dict[str, Callable[[Up], psutil.Process]] = {
    "owner": lambda up: psutil.Process(up.process.pid),
    "keeper": lambda up: up.keeper,
    "stand-by": lambda up: up.stand_by,
    "init": lambda up: up.init,
    "supervisor": lambda up: up.supervisor,
}


@pytest.mark.parametrize("who", KILLED)
def test_whoever_is_killed_nothing_is_left(who: str, up: Up) -> None:
    up.run_a_pod()
    KILLED[who](up).kill()
    if who == "stand-by":  # nobody needs it until the end
        up.process.send_signal(signal.SIGINT)
    up.await_no_trace()
    up.process.wait(END_DEADLINE_S)


def test_an_interrupted_cluster_leaves_nothing(up: Up) -> None:
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(END_DEADLINE_S) == 0
    assert not up.traces()


def test_down_ends_what_was_started_by_hand_and_clears_what_lost_every_process(real_machine: None) -> None:
    killed, living = Up(), Up()
    killed.keeper.suspend()  # or one of the two would notice the other's end
    killed.stand_by.kill()
    killed.keeper.kill()
    killed.await_only_files()
    names = [killed.record.name, living.record.name]  # a developer's own ones stay
    down = [sys.executable, "-m", "hanmaru_cluster", "real", "down", *names]
    subprocess.run(down, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    for up in (killed, living):
        up.process.wait(END_DEADLINE_S)
        up.await_no_trace()
