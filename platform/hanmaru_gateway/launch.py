"""Entry of `hanmaru gateway`: settings, Ray, the deployment, signals, and nothing left behind.

`hanmaru gateway head` and `hanmaru gateway node` are the pods of a cluster, in modules of their own.

Without RAY_ADDRESS a Ray of our own is started on this machine and ended with us; with it, the gateway is deployed to
that cluster. Ray is imported late, because it reads its environment when it is imported.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import configure_logging, log_event

from hanmaru_gateway import head, node, ray_start
from hanmaru_gateway.settings import Settings, read_settings, require_files
from hanmaru_gateway.stop import Stop

log = logging.getLogger(__name__)

ENV_RAY_ADDRESS = "RAY_ADDRESS"
EXIT_CONFIGURATION = 2
EXIT_FAILED = 1
_PR_SET_CHILD_SUBREAPER = 36
_RAY_CPUS = 4
"""Ray's bookkeeping alone: room for replicas and their successors at a tenth each, and for Serve's controller."""
_STOP_MARGIN_S = 20.0


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code: 0 after a signal, 2 for a wrong setting, else 1."""
    configure_logging("gateway")
    try:
        if argv[:1] == ["head"]:
            return head.main(argv[1:])
        if argv[:1] == ["node"]:
            return node.main(argv[1:])
        if argv[:1] == ["leave"]:
            return node.leave(os.environ)
        options = _parse(argv)
        settings = read_settings(os.environ, _given(options))
        if ENV_RAY_ADDRESS not in os.environ:
            require_files(settings)
            require_free_ports(settings, options.ray_port)
        with _ray(options.ray_port):
            return _serve(settings, options.replicas)
    except HanmaruError as error:
        log_event(log, logging.ERROR, "gateway.cannot_start", code=error.code.value, problem=error.message)
        return EXIT_CONFIGURATION if error.code is ErrorCode.CONFIGURATION else EXIT_FAILED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hanmaru gateway",
        description="Serve REST and gRPC on Ray Serve.",
        epilog="On a cluster its pods are `hanmaru gateway head` and `hanmaru gateway node` (each has a --help).",
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--http-port", type=int, help=f"REST (default {names.GATEWAY_HTTP_PORT})")
    parser.add_argument("--grpc-port", type=int, help=f"gRPC (default {names.GATEWAY_GRPC_PORT})")
    parser.add_argument("--metrics-port", type=int, help=f"Prometheus (default {names.GATEWAY_METRICS_PORT})")
    parser.add_argument("--ray-port", type=int, default=names.RAY_GCS_PORT, help="Ray's own port, when it is started")
    parser.add_argument("--replicas", type=int, default=1, help="gateway processes on this cluster (default 1)")
    return parser.parse_args(argv)


def _given(options: argparse.Namespace) -> Mapping[str, object]:
    return {
        "host": options.host,
        "http_port": options.http_port,
        "grpc_port": options.grpc_port,
        "metrics_port": options.metrics_port,
    }


def require_free_ports(settings: Settings, ray_port: int) -> None:
    """Raise HanmaruError (CONFIGURATION) for a port that is taken on this machine.

    The listeners themselves would not notice another gateway there, since they share ports to replace each other. On a
    cluster that runs already (RAY_ADDRESS) that is what should happen, and nobody asks.
    """
    listens = (
        ("REST", settings.http_port),
        ("gRPC", settings.grpc_port),
        ("metrics", settings.metrics_port),
        ("Ray", ray_port),
    )
    for what, port in listens:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise HanmaruError(
                    ErrorCode.CONFIGURATION,
                    f"{what} cannot listen on {settings.host}:{port}: {error.strerror}; give another port",
                ) from error


def _serve(settings: Settings, replicas: int) -> int:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from hanmaru_gateway.deployment import APPLICATION, gateway_application

    stop = Stop()
    stop.on_signals()  # after ray.init, which installs handlers of its own
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    try:
        serve.run(gateway_application(settings, replicas), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise HanmaruError(ErrorCode.INTERNAL, "the gateway's replica did not start; see the lines above") from error
    log_event(
        log,
        logging.INFO,
        "gateway.ready",
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        metrics_port=settings.metrics_port,
    )
    stop.wait()
    log_event(log, logging.INFO, "gateway.draining")
    # In a thread: with Ray's control process gone it would never return, and we end all the same.
    deleting = threading.Thread(target=_delete, args=(APPLICATION,), daemon=True)
    deleting.start()
    deleting.join(settings.shutdown_timeout_s + _STOP_MARGIN_S)
    return 0


def _delete(application: str) -> None:
    from ray import serve

    serve.delete(application)
    if ENV_RAY_ADDRESS not in os.environ:
        serve.shutdown()


@contextmanager
def _ray(port: int) -> Iterator[None]:
    """A Ray to deploy to: the one at RAY_ADDRESS, or our own until the block ends."""
    for variable, value in ray_start.DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if ENV_RAY_ADDRESS in os.environ:
        import ray

        ray.init(logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray's workers are children of its raylet; as their reaper we see every one of them end.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A short name: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="hmr-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=_RAY_CPUS,
            object_store_memory=ray_start.OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=True,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        _reap()
        shutil.rmtree(folder, ignore_errors=True)


def _reap() -> None:
    """Collect the children that Ray left to us."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
