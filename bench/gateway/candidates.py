"""The listener candidates of decision 0003, each the smallest passthrough that can be built on it.

`run_candidates.py` and `listener_faults.py` start one process a candidate (`python bench/gateway/candidates.py NAME
--port N --engine URL`). All run the same raw-ASGI app with one keep-alive pool to the engine, so the differences are
the listener's. SIGHUP deploys the application anew, as a rollout does; SIGTERM ends it, Ray included.
No authentication and no routing: those are the product's, measured by `run.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections import deque
from typing import Any

import aiohttp
import uvicorn
from hanmaru_gateway.stop import Stop

RAY_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
}
PORT_SPAN = 20
"""Ports a candidate may use from its own on: direct ingress takes one a replica, HAProxy a few for itself."""


def mode_env(mode: str, port: int) -> dict[str, str]:
    """Serve's switches for one candidate. Each node of a cluster must have the same ones."""
    direct = {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    match mode:
        case "direct-ingress":
            # The replica takes the first free port of this range; there is no fixed one.
            first, last = port, port + PORT_SPAN // 2
            ports = {
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last),
            }
            return direct | ports
        case "haproxy":
            files = f"/tmp/hmr-haproxy-{port}"
            return direct | {
                "RAY_SERVE_ENABLE_HA_PROXY": "1",
                "RAY_SERVE_HAPROXY_NBTHREAD": "1",
                "RAY_SERVE_HAPROXY_STATS_PORT": str(port + PORT_SPAN - 1),
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + PORT_SPAN - 2),
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{files}/haproxy.cfg",
                "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{files}/admin.sock",
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": files,
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{files}/server-state",
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port + 1),
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + PORT_SPAN // 2),
            }
        case _:
            return {}


MODES = ("raw", "owned", "direct-ingress", "haproxy", "default")
MAX_ONGOING_REQUESTS = 10_000
DRAIN_LIMIT_S = 60.0


class Passthrough:
    """Raw ASGI: any POST goes to the same path of the engine, its answer back byte for byte."""

    def __init__(self, engine_url: str) -> None:
        self._engine_url = engine_url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(
                self._engine_url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
            )
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {"content-type": "application/json"}
        async with self._session.request(scope["method"], scope["path"], data=body, headers=headers) as answer:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": [(b"content-type", answer.headers.get("content-type", "").encode())],
                }
            )
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def reuseport_socket(port: int) -> socket.socket:
    """A bound loopback socket that another replica of the same user may bind too."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    return listener


class OwnedListener(uvicorn.Server):
    """uvicorn inside somebody else's event loop: no signal handlers, started and stopped by the owner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class OwnedReplica:
    """A Serve replica that owns its listener: Serve keeps lifecycle, health and rollout, and sees no request."""

    async def __init__(self, engine_url: str, port: int) -> None:  # type: ignore[misc]  # Serve awaits it
        config = uvicorn.Config(
            Passthrough(engine_url),
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=int(DRAIN_LIMIT_S),
        )
        self._server = OwnedListener(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[reuseport_socket(port)]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0.01)

    async def check_health(self) -> None:
        """Called by Serve on this loop: a loop that hangs fails it by not answering."""
        if self._serving.done():
            raise RuntimeError("the listener has stopped")

    async def __del__(self) -> None:
        """Serve awaits this before it ends the actor: stop accepting, let open streams finish."""
        self._server.should_exit = True
        await self._serving


def run_raw(engine_url: str, port: int) -> None:
    """The floor: the same app on uvicorn with no Ray at all."""
    config = uvicorn.Config(
        Passthrough(engine_url),
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
    )
    uvicorn.Server(config).run(sockets=[reuseport_socket(port)])


def start_ray(temp_dir: str) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=80 * 1024 * 1024,
        include_dashboard=False,
        configure_logging=True,
        logging_level="ERROR",
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=temp_dir,
    )


def run_on_ray(mode: str, engine_url: str, port: int) -> None:
    """Start a one-node Ray and the app in `mode`; SIGHUP deploys it anew, SIGTERM stops everything."""
    from ray import serve

    stop, again = Stop(), deque[int]()
    with tempfile.TemporaryDirectory(prefix="hmr-", dir="/tmp", ignore_cleanup_errors=True) as temp_dir:
        start_ray(temp_dir)
        stop.on_signals()
        signal.signal(signal.SIGHUP, lambda number, _: again.append(number))
        deploy(serve, mode, engine_url, port)
        print("ready", flush=True)
        while not stop.wait(0.2):
            if again:
                again.clear()
                deploy(serve, mode, engine_url, port)
                print("deployed anew", flush=True)
        import ray

        serve.shutdown()
        ray.shutdown()


def deploy(serve: Any, mode: str, engine_url: str, port: int) -> None:
    """Declare and run the application of `mode`; again with the same arguments, it is a rollout."""
    options: dict[str, Any] = {
        "name": "gateway",
        "num_replicas": 1,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": DRAIN_LIMIT_S + 5,
        "health_check_period_s": 2,
        "health_check_timeout_s": 10,
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    if mode == "owned":
        serve.start(proxy_location="Disabled")
        serve.run(serve.deployment(OwnedReplica, **options).bind(engine_url, port), name="gateway", route_prefix=None)
    else:
        proxy_port = port + PORT_SPAN if mode == "direct-ingress" else port
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": proxy_port})
        # Direct ingress still starts the Python proxy, as a fallback: out of the way here.
        ingress = serve.ingress(Passthrough(engine_url))(type("Ingress", (), {}))
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        serve.run(serve.deployment(ingress, **options).bind(), name="gateway", route_prefix="/", logging_config=quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True)
    args = parser.parse_args()
    if args.mode == "raw":
        run_raw(args.engine, args.port)
        return
    # Ray and Serve read these at import, and workers inherit them.
    os.environ.update(RAY_ENV, **mode_env(args.mode, args.port))
    run_on_ray(args.mode, args.engine, args.port)


if __name__ == "__main__":
    main()
