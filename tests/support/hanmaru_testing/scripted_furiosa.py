"""A stand-in for furiosa-llm, of the shape that `hanmaru_worker.furiosa_main` relies on (read in 2026.4.0).

`scripted_furiosa_path` gives a folder that, first in PYTHONPATH, holds a package `furiosa_llm`: its command parses its
own arguments, makes a Starlette app and serves it without any check of its own, and a chat answers with the prompt it
would have given to the engine. `State` is written to a file that the stand-in reads at each request. What the real one
does on an NPU is shown by nothing here.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

ENV_STATE = "SCRIPTED_FURIOSA_STATE"
"""Names the file with the `State`; without it the stand-in is as a `State()` is."""


@dataclass(frozen=True, slots=True)
class State:
    """What the engine does."""

    loads_weights: bool = False
    """It listens and makes no token yet."""
    is_stuck: bool = False
    """Nothing that a supervisor asks is answered any more."""
    running: int = 2
    waiting: int = 1
    cache_used: float = 0.5

    def write(self, file: Path) -> None:
        """At once for the next request."""
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(file)

    @property
    def page(self) -> str:
        """`/metrics`."""
        values: dict[str, float] = {"num_requests_running": self.running, "num_requests_waiting": self.waiting}
        values |= {"kv_cache_usage_percent": self.cache_used}
        return "".join(
            f'# TYPE furiosa_llm_{name} gauge\nfuriosa_llm_{name}{{engine="0",model_name="tiny"}} {float(value)}\n'
            for name, value in values.items()
        )


async def state() -> State:
    """As it stands in the file; never returns while the engine is stuck."""
    file = os.environ.get(ENV_STATE)
    found = State(**json.loads(await asyncio.to_thread(Path(file).read_text))) if file else State()
    if found.is_stuck:
        await asyncio.Event().wait()
    return found


_MODULES = {
    "cli/main.py": "main",
    "server/serving_chat.py": "preprocess_chat",
    "server/app.py": "init_app, serve\n\ndef run_server(args):\n    serve(init_app(args), args)\n",
}


def scripted_furiosa_path(folder: Path) -> str:
    """Make `folder` the place of the package; the value for PYTHONPATH."""
    for name, imported in _MODULES.items():
        file = folder / "furiosa_llm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        (folder / "furiosa_llm" / "__init__.py").touch()
        file.write_text(f"from {__name__} import {imported}\n")
    return f"{folder}{os.pathsep}{Path(__file__).parents[1]}"


def main() -> None:
    """`furiosa-llm serve MODEL …`; an option it does not know is an error, as there."""
    parser = argparse.ArgumentParser()
    serve_parser = parser.add_subparsers().add_parser("serve")
    serve_parser.add_argument("model")
    for flag in ("--served-model-name", "--host", "--api-key", "--reasoning-parser", "--tool-call-parser"):
        serve_parser.add_argument(flag)
    for flag in ("--port", "--max-model-len", "--max-concurrency", "--pipeline-parallel-size", "--data-parallel-size"):
        serve_parser.add_argument(flag, type=int)
    serve_parser.add_argument("--uvicorn-log-level", choices=["info", "warning"], default="info")
    for flag in ("--enable-prefix-caching", "--disable-uvicorn-access-log"):
        serve_parser.add_argument(flag, action=argparse.BooleanOptionalAction)
    serve_parser.add_argument("--enable-auto-tool-choice", action="store_true")
    args = parser.parse_args(sys.argv[1:])
    importlib.import_module("furiosa_llm.server.app").run_server(args)


def init_app(args: argparse.Namespace) -> Starlette:
    async def health(_request: Request) -> Response:
        await state()
        return Response()

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse((await state()).page)

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": args.served_model_name, "object": "model"}]})

    async def completions(request: Request) -> Response:
        asked = await request.json()
        if (await state()).loads_weights:
            return JSONResponse({}, status_code=503)
        is_token = asked["model"] == args.served_model_name and asked["prompt"] == [1] and asked["max_tokens"] == 1
        return JSONResponse({}, status_code=200 if is_token else 400)

    async def chat(request: Request) -> Response:
        asked = SimpleNamespace(model_extra=await request.json())
        # As `serving_chat` does: by the module's own name for it.
        module = importlib.import_module("furiosa_llm.server.serving_chat")
        _, _, prompts = await module.preprocess_chat(request=asked, messages=asked.model_extra["messages"])
        return JSONResponse(prompts[0])

    async def version(_request: Request) -> Response:
        return JSONResponse({"version": "2026.4.0"})

    reads = {"/health": health, "/metrics": metrics, "/version": version, "/v1/models": models}
    writes = {"/v1/completions": completions, "/v1/chat/completions": chat}
    routes = [Route(path, endpoint) for path, endpoint in reads.items()]
    return Starlette(routes=[*routes, *(Route(path, endpoint, methods=["POST"]) for path, endpoint in writes.items())])


def serve(app: Starlette, args: argparse.Namespace) -> None:
    uvicorn.run(app, host=args.host, port=args.port, log_level=args.uvicorn_log_level)


async def preprocess_chat(*, request: Any, messages: list[Any]) -> Any:
    """Renders the messages by the model's template."""
    return messages, [""], [{"prompt_token_ids": [0] * len(messages)}]
