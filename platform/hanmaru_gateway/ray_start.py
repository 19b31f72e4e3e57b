"""One Ray node as a child process: `ray start --block` with every port pinned, for `head` and `node`.

Ray chooses ports by chance; NetworkPolicies need them by name, so each has its place in a block that begins with the
GCS's (decision 0012). `python -m hanmaru_gateway.ray_start` is the child.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmaru_gateway.settings import read_secret

ENV_GCS_REDIS_USER = "HANMARU_RAY_REDIS_USER"
ENV_GCS_REDIS_PASSWORD_FILE = "HANMARU_RAY_REDIS_PASSWORD_FILE"
ENV_STORAGE_NAMESPACE = "RAY_external_storage_namespace"
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's smallest; nothing of ours is stored there."""
NODE_RESOURCE = "hanmaru_gateway"
"""Ray resource of a gateway node: one, which one replica takes whole."""
NUM_PORTS = 32
"""Ports of one node, from the GCS's on."""
_FIRST_WORKER = 8
_HEAD_WITHOUT = ("--include-dashboard=false", "--no-monitor")
"""No dashboard and no autoscaler of Ray's: each would be a door, and memory."""
_STOP_TIMEOUT_S = 15.0
_HOOK = "hanmaru_gateway.ray_start.adjust"

DEFAULTS: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # Ray's default of 15 leaves a replica ten requests a second on a machine whose cores are busy (decision 0003).
    "RAY_worker_niceness": "0",
    # Under `uv run` Ray would pack the working directory and start each worker by `uv run` again, which never comes up.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # One text at a time is tokenised; handing it to a pool of threads costs more than it saves.
    "TOKENIZERS_PARALLELISM": "false",
}
"""What Ray's processes inherit, unless the environment says otherwise."""

CLUSTER_DEFAULTS: Mapping[str, str] = {
    **DEFAULTS,
    # A node whose head is gone goes on for a day; Ray's minute would end its replica (decision 0003).
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    # Says nothing that our own metrics do not.
    "RAY_enable_metrics_collection": "0",
    # Lines of replicas go to the output of their pod, and of the rest what is wrong.
    "RAY_LOG_TO_STDERR": "1",
    "RAY_BACKEND_LOG_LEVEL": "warning",
    # On a machine whose cores are busy, Ray's agents take longer than the 15 s that a raylet grants them.
    "RAY_agent_register_timeout_ms": "120000",
    # The replica has left already when Ray is told to end; Ray's own half minute would wait for nothing.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@dataclass(frozen=True, slots=True)
class RayNode:
    """Where a node of Ray's runs, and what it joins."""

    folder: Path
    """For its sockets and logs; a short path, because a Unix socket's may have 107 bytes. The same on every node."""
    address: str
    """Its own address, as others reach it."""
    first_port: int
    head: str | None = None
    """`host:port` of the GCS to join. None: be the head."""
    resources: Mapping[str, float] | None = None


def to_argv(node: RayNode) -> list[str]:
    """Arguments of `ray start`. Pure."""
    port = node.first_port
    argv = [f"--address={node.head}"] if node.head else ["--head", f"--port={port}", *_HEAD_WITHOUT]
    if node.resources:
        pairs = ", ".join(f'"{name}": {amount}' for name, amount in sorted(node.resources.items()))
        argv.append(f"--resources={{{pairs}}}")
    return [
        *argv,
        f"--node-ip-address={node.address}",
        f"--node-manager-port={port + 1}",
        f"--object-manager-port={port + 2}",
        f"--runtime-env-agent-port={port + 3}",
        f"--dashboard-agent-grpc-port={port + 4}",
        f"--dashboard-agent-listen-port={port + 5}",
        f"--metrics-export-port={port + 6}",
        f"--min-worker-port={port + _FIRST_WORKER}",
        f"--max-worker-port={port + NUM_PORTS - 1}",
        # No work is placed by processors, and none is started in advance.
        "--num-cpus=0",
        "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={node.folder}",
        # 80 MB a pod to copy lines from files nobody reads: replicas write to the pod's own output.
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--block",
    ]


@contextmanager
def running(node: RayNode, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node as a child, ended with the block. The folder is emptied first: it is this node's alone."""
    _empty(node.folder)
    child = subprocess.Popen(
        [sys.executable, "-m", "hanmaru_gateway.ray_start", *to_argv(node)],
        env={**environment, "RAY_START_HOOK": _HOOK},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        _end(child)
        _empty(node.folder)


def _empty(folder: Path) -> None:
    """Not the folder itself, which may be a volume."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    # What Ray leaves behind in its session; agents notice only seconds later that their raylet is gone.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def adjust(params: Any, head: bool) -> None:
    """Ray calls this with what it is about to start (RAY_START_HOOK): what its command line cannot say."""
    # The server for clients outside would be started whenever gRPC is installed.
    params.ray_client_server_port = None
    if user := os.environ.get(ENV_GCS_REDIS_USER):
        params.redis_username = user
    if file := os.environ.get(ENV_GCS_REDIS_PASSWORD_FILE):
        params.redis_password = read_secret(Path(file), "password of Ray's Redis")


def _child(arguments: Sequence[str]) -> None:
    # As if Ray had been installed without its dashboard: its agent then offers no jobs and no HTTP, takes less memory,
    # and starts within the 15 s that a raylet grants it, on busy cores too.
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]
    # Imported here: Ray reads its environment when it is imported, and the parent needs none of it.
    from ray.scripts.scripts import start

    start.main(list(arguments), prog_name="ray start")


if __name__ == "__main__":
    _child(sys.argv[1:])
