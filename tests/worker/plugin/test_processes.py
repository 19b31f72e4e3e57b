"""Forks of a process with one thread find what spawned ones would; from any other, upstream's way is kept.

Each case is a process of its own: what is forked, and from how many threads, is the claim. That an engine so started
serves and stops is shown by every test with an engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

SERVER = """
import json, multiprocessing, signal, sys, threading, time
from hanmaru_worker.plugin import processes

INHERITED = []

def child(writer):
    ends_by_default = signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL
    writer.send([bool(INHERITED), ends_by_default, multiprocessing.get_start_method()])

def launch(engine, server_args, port_args, run):
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=run, args=(writer,))
    process.start()
    process.join(60)
    return reader.recv()

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    signal.signal(signal.SIGQUIT, lambda *_: None)
    INHERITED.append("what the server has imported")
    if sys.argv[1] == "two":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    found = processes.launch_detokenizers(launch, object, None, None, child)
    print(json.dumps([*found, multiprocessing.get_start_method()]))
"""


def launched(threads: str, folder: Path) -> list[object]:
    script = folder / "server.py"
    script.write_text(SERVER)
    environment = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "ignore", str(script), threads]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer: list[object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")
def test_one_thread_forks_and_the_child_is_as_if_spawned(tmp_path: Path) -> None:
    inherits, ends_by_default, start_method, start_method_after = launched("one", tmp_path)
    assert inherits, "the child was not forked"
    assert ends_by_default
    assert (start_method, start_method_after) == ("spawn", "spawn"), "both begin further processes as upstream does"


def test_two_threads_spawn_as_upstream_does(tmp_path: Path) -> None:
    inherits, *_ = launched("two", tmp_path)
    assert not inherits
