"""furiosa-llm's own program as our workers run it: `python -m hanmaru_worker.furiosa_main KEYS_FILE serve MODEL …`.

Three things that it cannot be told by options (2026.4.0): the key comes from a file and is on no process's command
line; every route but those a request needs is closed, with the key too (its own check looks at `/v1` alone); and a
chat's prompt may come as the token ids that gateways send (`input_ids`, docs/decisions/0007). Nothing of furiosa-llm is
imported until it runs, and its image is the only one that has it.
"""

from __future__ import annotations

import hmac
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

FOR_ANYONE = frozenset({"/health"})
FOR_THE_KEY = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics"})

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Doors:
    """ASGI middleware: who may pass where."""

    def __init__(self, app: App, key: str) -> None:
        self._app = app
        self._authorization = f"Bearer {key}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may_pass(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _may_pass(self, scope: MutableMapping[str, Any]) -> bool:
        if scope["path"] in FOR_ANYONE:
            return True
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return scope["path"] in FOR_THE_KEY and hmac.compare_digest(shown, self._authorization)


def token_ids_first(preprocess: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A chat's prompt from the request's `input_ids` where it has them, else as furiosa-llm makes it."""

    async def preprocess_chat(*args: Any, request: Any, **options: Any) -> Any:
        token_ids = (request.model_extra or {}).get("input_ids")
        if token_ids is None:
            return await preprocess(*args, request=request, **options)
        # (conversation, prompts, prompts of the engine): only the last is read.
        return [], [token_ids], [{"prompt_token_ids": token_ids}]

    return preprocess_chat


def main(keys_file: Path, arguments: Sequence[str]) -> None:
    """Run it until it ends."""
    key = json.loads(keys_file.read_text())["api-key"]
    app = importlib.import_module("furiosa_llm.server.app")
    chat = importlib.import_module("furiosa_llm.server.serving_chat")
    make_app = app.init_app

    def closed_app(*args: Any, **options: Any) -> Any:
        made = make_app(*args, **options)
        made.add_middleware(Doors, key=key)
        return made

    app.init_app = closed_app  # type: ignore[attr-defined]
    chat.preprocess_chat = token_ids_first(chat.preprocess_chat)  # type: ignore[attr-defined]
    # Python's own list, which nobody outside this process sees.
    sys.argv = ["furiosa-llm", *arguments, "--api-key", key]
    importlib.import_module("furiosa_llm.cli.main").main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
