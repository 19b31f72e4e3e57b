"""A stand-in for the engine's program, for tests of the supervisor's own logic: it starts in a second and misbehaves on
request. The same behaviours are checked on the real engine in `tests/worker/test_real_worker.py`.

`scripted_engine_path` gives a folder that, first in PYTHONPATH, makes `python -m sglang.launch_server` run this.
Behaviours are switched by `POST /script` with a JSON object of `Script` fields; `SCRIPTED_ENGINE` holds the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

ENV_SCRIPT = "SCRIPTED_ENGINE"


@dataclass
class Script:
    """What the engine does; healthy and idle unless told otherwise."""

    running: int = 0
    queued: int = 0
    kv_load: float = 0.0
    scheduler_moves: bool = True
    answers_tokens: bool = True
    shows_admin_routes: bool = False
    exit_status: int | None = None
    """Ends with it at once."""
    ignores_sigterm: bool = False
    strays: bool = False
    """Starts a child in a session of its own, and a grandchild without a parent."""


def scripted_engine_path(folder: Path) -> str:
    """Make `folder` the place of a `sglang` package that runs this; the value for PYTHONPATH."""
    package = folder / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(f"from {__name__} import main\nmain()\n")
    return f"{folder}{os.pathsep}{Path(__file__).parents[1]}"


def main() -> None:
    """Serve until killed or asked to end."""
    parser = argparse.ArgumentParser()
    for flag in ("--config", "--host", "--port"):
        parser.add_argument(flag, required=True)
    options, _ = parser.parse_known_args()
    api_key = json.loads(Path(options.config).read_text())["api-key"]
    script = Script(**json.loads(os.environ.get(ENV_SCRIPT, "{}")))
    print("scripted engine: hello", flush=True)
    _act(script)
    app = _app(script, api_key)
    runner_options: dict[str, Any] = {"print": None, "access_log": None, "handle_signals": not script.ignores_sigterm}
    web.run_app(app, host=options.host, port=int(options.port), shutdown_timeout=0.1, **runner_options)


def _act(script: Script) -> None:
    if script.ignores_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.strays:
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleeper, start_new_session=True)
        nested = f"import subprocess; subprocess.Popen({sleeper!r}, start_new_session=True)"
        subprocess.run([sys.executable, "-c", nested], check=True)
    if script.exit_status is not None:
        print("scripted engine: my last words", flush=True)
        os._exit(script.exit_status)


def _app(script: Script, api_key: str) -> web.Application:
    frozen_at = time.time()

    @web.middleware
    async def check_key(request: web.Request, handler: Any) -> web.StreamResponse:
        is_open = request.path in ("/script", "/health")
        if not is_open and request.headers.get("Authorization") != f"Bearer {api_key}":
            raise web.HTTPUnauthorized
        answer: web.StreamResponse = await handler(request)
        return answer

    async def token(_request: web.Request) -> web.Response:
        if not script.answers_tokens:
            await asyncio.Event().wait()  # not this request, ever
        return web.json_response({"text": "x"})

    async def loads(_request: web.Request) -> web.Response:
        rank = {
            "timestamp": time.time() if script.scheduler_moves else frozen_at,
            "num_running_reqs": script.running,
            "num_waiting_reqs": script.queued,
            "token_usage": script.kv_load,
        }
        return web.json_response({"loads": [rank]})

    async def server_info(_request: web.Request) -> web.Response:
        return web.Response(status=200 if script.shows_admin_routes else 401)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text="sglang:num_running_reqs 0.0\n")

    async def change(request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            setattr(script, name, value)
        _act(script)
        return web.Response()

    app = web.Application(middlewares=[check_key])
    app.add_routes([
        web.post("/generate", token), web.get("/health_generate", token), web.get("/v1/loads", loads),
        web.get("/server_info", server_info), web.get("/metrics", metrics), web.post("/script", change),
    ])  # fmt: skip
    return app
