"""`hanmaru gateway head`: the control side of a gateway on a cluster. It serves no tenant.

Runs Ray's head (GCS, Serve's controller) as a child, tells Serve what to run, and then waits. The GCS keeps its state
in a Redis of its own, so a head that starts again finds nodes and replicas where they are and restarts none. Called
by `launch`; pods that serve are `node`'s.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_gateway import ray_start
from hanmaru_gateway.stop import Stop

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
START_ATTEMPTS = 5
_LOOK_INTERVAL_S = 0.5


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM (0) or until Ray has ended (1). Raises HanmaruError."""
    options = _parse(argv)
    environment = ray_environment(os.environ)
    environment.setdefault(ray_start.ENV_STORAGE_NAMESPACE, f"hanmaru-ray-{version('ray')}")
    stop = Stop()
    stop.on_signals()
    wanted = ray_start.RayNode(options.ray_folder, options.address, options.ray_port)
    return until_started(lambda: _run(wanted, environment, stop))


def until_started(run: Callable[[], int]) -> int:
    """`run`'s status; again while it fails so early that Ray cannot have started.

    Ray's own bounds on its start are in code: a raylet ends when its agent takes longer than 15 s, as on a node whose
    cores are busy with other starts. Here the second try is at once, and with the files of the first still cached.
    """
    for _ in range(START_ATTEMPTS - 1):
        begun_s = time.monotonic()
        status = run()
        if status == 0 or time.monotonic() - begun_s > START_TIMEOUT_S:
            return status
        log_event(log, logging.WARNING, "ray.starts_again")
    return run()


def _run(wanted: ray_start.RayNode, environment: Mapping[str, str], stop: Stop) -> int:
    with ray_start.running(wanted, environment) as ray:
        address = f"{wanted.address}:{wanted.first_port}"
        deploying = subprocess.Popen([sys.executable, "-m", "hanmaru_gateway.deploy", address], env=environment)
        try:
            return wait_for_both(ray, deploying, stop)
        finally:
            deploying.kill()
            deploying.wait()


def wait_for_both(ray: subprocess.Popen[bytes], deploying: subprocess.Popen[bytes], stop: Stop) -> int:
    """Until a signal (0), or until either has failed (1): the gateway was not deployed, or Ray has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while deploying.poll() is None and ray.poll() is None:
        if stop.wait(_LOOK_INTERVAL_S):
            return 0
        if time.monotonic() > deadline:
            break
    if _has_ended(ray):
        return 1
    if deploying.poll() != 0:
        log_event(log, logging.ERROR, "gateway.not_deployed", exit_status=deploying.returncode)
        return 1
    log_event(log, logging.INFO, "gateway.deployed")
    return wait(ray, stop)


def wait(ray: subprocess.Popen[bytes], stop: Stop) -> int:
    """Until a signal (0), or until Ray has ended by itself (1)."""
    while not stop.wait(_LOOK_INTERVAL_S):
        if _has_ended(ray):
            return 1
    return 0


def _has_ended(ray: subprocess.Popen[bytes]) -> bool:
    if ray.poll() is None:
        return False
    log_event(log, logging.ERROR, "ray.ended", exit_status=ray.returncode)
    return True


def ray_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray's processes of a cluster inherit: ours, and what Ray would otherwise choose wrongly.

    Raises HanmaruError (CONFIGURATION) without Ray's token.
    """
    inherited = {**ray_start.CLUSTER_DEFAULTS, **environment}
    if inherited["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in inherited:
        raise HanmaruError(ErrorCode.CONFIGURATION, "RAY_AUTH_TOKEN_PATH is not set; name the file of Ray's token")
    return inherited


def add_ray_options(parser: argparse.ArgumentParser) -> None:
    """Where a Ray node runs; `head` and `node` say it alike."""
    parser.add_argument("--address", default=os.environ.get("POD_IP", "127.0.0.1"), help="own address (POD_IP)")
    parser.add_argument(
        "--ray-port", type=int, default=names.RAY_GCS_PORT, help=f"first of {ray_start.NUM_PORTS} ports of Ray's"
    )
    parser.add_argument(
        "--ray-folder",
        type=Path,
        default=Path("/tmp/ray"),  # noqa: S108  a pod's own
        help="its files; emptied first; a short path",
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hanmaru gateway head", description="Run Ray's head for gateway nodes.")
    add_ray_options(parser)
    return parser.parse_args(argv)
