"""`hanmaru gateway node`: one pod that serves. A Ray node that joins the head's, and the replica Serve puts on it.

Wrong settings are said before anything joins. On SIGTERM the replica leaves in peace, whether or not a head is there to
be told (`leaving`), and then Ray's processes end. Called by `launch`.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_gateway import head, ray_start
from hanmaru_gateway.leaving import ENV_LEAVE_SOCKET, ask_to_leave
from hanmaru_gateway.settings import Settings, read_settings, require_files
from hanmaru_gateway.stop import Stop

log = logging.getLogger(__name__)

LEAVE_MARGIN_S = 10.0
"""Beyond the settings' own bounds: what is owed to Redis and to the collector of traces is written."""
_LOOK_INTERVAL_S = 1.0


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM (0) or until Ray has ended (1). Raises HanmaruError (CONFIGURATION) before it joins."""
    options = _parse(argv)
    settings = read_settings(os.environ, {})
    require_files(settings)
    environment = {**head.ray_environment(os.environ), ENV_LEAVE_SOCKET: str(options.ray_folder / "leave")}
    stop = Stop()
    stop.on_signals()
    if not _head_answers(options.head, stop):
        return 0
    wanted = ray_start.RayNode(
        options.ray_folder, options.address, options.ray_port, options.head, {ray_start.NODE_RESOURCE: 1}
    )
    return head.until_started(lambda: _run(wanted, environment, settings, stop))


def _run(wanted: ray_start.RayNode, environment: Mapping[str, str], settings: Settings, stop: Stop) -> int:
    with ray_start.running(wanted, environment) as ray:
        log_event(log, logging.INFO, "gateway.joining", head=wanted.head)
        status = head.wait(ray, stop)
        if stop.is_asked():
            log_event(log, logging.INFO, "gateway.leaving")
            has_left = ask_to_leave(Path(environment[ENV_LEAVE_SOCKET]), leave_timeout_s(settings))
            log_event(log, logging.INFO, "gateway.left", in_peace=has_left)
    return status


def leave(environment: Mapping[str, str]) -> int:
    """`hanmaru gateway leave`, a preStop hook: end this pod's replica where its first process is not ours (KubeRay)."""
    door = environment.get(ENV_LEAVE_SOCKET)
    if door is None:
        raise HanmaruError(ErrorCode.CONFIGURATION, f"{ENV_LEAVE_SOCKET} is not set; name the replica's socket")
    return 0 if ask_to_leave(Path(door), leave_timeout_s(read_settings(environment, {}))) else 1


def leave_timeout_s(settings: Settings) -> float:
    """How long a replica may take to leave; what Kubernetes grants a pod must be more."""
    return settings.leave_delay_s + settings.shutdown_timeout_s + LEAVE_MARGIN_S


def _head_answers(address: str, stop: Stop) -> bool:
    """Wait for the head, which may come later than this pod. False: told to stop before it came."""
    host, _, port = address.rpartition(":")
    is_said = False
    while not stop.is_asked():
        try:
            socket.create_connection((host, int(port)), timeout=_LOOK_INTERVAL_S).close()
        except OSError:
            if not is_said:
                log_event(log, logging.INFO, "gateway.awaits_head", head=address)
                is_said = True
            stop.wait(_LOOK_INTERVAL_S)
        else:
            return True
    return False


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hanmaru gateway node", description="Serve on one node of a cluster.")
    head.add_ray_options(parser)
    parser.add_argument("--head", required=True, help="host:port of `hanmaru gateway head`")
    options = parser.parse_args(argv)
    if ":" not in options.head:
        raise HanmaruError(ErrorCode.CONFIGURATION, f"--head {options.head!r} is no host:port")
    return options
