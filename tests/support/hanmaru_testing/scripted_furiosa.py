"""A stand-in for furiosa-llm, of the shape that `hanmaru_worker.furiosa_main` relies on (read in 2026.4.0).

`scripted_furiosa_path` gives a folder that, first in PYTHONPATH, holds a package `furiosa_llm`: its command parses its
own arguments, makes a Starlette app and serves it without any check of its own, and a chat answers with the prompt it
would have given to the engine. What the real one does on an NPU is shown by nothing here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

PAGE = """furiosa_llm_num_requests_running{engine="0"} 2
furiosa_llm_num_requests_waiting{engine="0"} 1
furiosa_llm_kv_cache_usage_percent{engine="0"} 0.5
"""
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
        return Response()

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(PAGE)

    async def completions(request: Request) -> Response:
        asked = await request.json()
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

    routes = [Route("/health", health), Route("/metrics", metrics), Route("/version", version)]
    routes += [Route("/v1/completions", completions, methods=["POST"])]
    return Starlette(routes=[*routes, Route("/v1/chat/completions", chat, methods=["POST"])])


def serve(app: Starlette, args: argparse.Namespace) -> None:
    uvicorn.run(app, host=args.host, port=args.port, log_level=args.uvicorn_log_level)


async def preprocess_chat(*, request: Any, messages: list[Any]) -> Any:
    """Renders the messages by the model's template."""
    return messages, [""], [{"prompt_token_ids": [0] * len(messages)}]
