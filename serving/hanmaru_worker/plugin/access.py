"""Which of the engine's routes a gateway's key opens: the ones a request needs, by one allow-list. Pure.

SGLang knows two keys. Left to itself it shows `/server_info`, with both keys in it, to whoever has the ordinary one,
opens sessions, other vendors' interfaces and scoring to it, and answers `/health_generate`, `/metrics` and the socket
`/v1/realtime` to anyone (seen in 0.5.23). `hooks` puts `decide` in front of SGLang's own decision: everything outside
the allow-list takes the admin key, which never leaves the engine; web sockets are refused. Without an admin key (SGLang
started by hand) the routes stay as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

DECISION = "sglang.srt.utils.auth.decide_request_auth"
MIDDLEWARE = "sglang.srt.utils.auth.add_api_key_middleware"

FOR_ANYONE = frozenset({"/health", "/ready"})
"""They say yes or no, and make the engine compute nothing."""
FOR_GATEWAYS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/generate"})
FOR_THE_SUPERVISOR = frozenset({"/v1/loads", "/health_generate", "/metrics"})
"""It derives the same key as gateways do."""


def decide(
    original: Callable[..., Any], *, path: str, auth_level: Any, admin_api_key: str | None, **request: Any
) -> Any:
    """SGLang's `AuthDecision` for one request; hooked AROUND SGLang's function."""
    if not admin_api_key or path in FOR_ANYONE:
        return original(path=path, auth_level=auth_level, admin_api_key=admin_api_key, **request)
    levels = type(auth_level)
    is_allowed = path in FOR_GATEWAYS or path in FOR_THE_SUPERVISOR
    # SGLang opens every path that begins like one of its health routes, and every OPTIONS: it is shown neither.
    return original(
        **{**request, "method": "GET"},
        path="",
        auth_level=levels.NORMAL if is_allowed else levels.ADMIN_FORCE,
        admin_api_key=admin_api_key,
    )


def refuse_web_sockets(_result: None, app: Any, *, admin_api_key: str | None, **_keys: Any) -> None:
    """SGLang's key check lets them pass; hooked AFTER the function that installs that check."""
    if admin_api_key:
        app.add_middleware(NoWebSockets)


class NoWebSockets:
    """ASGI middleware: a web socket is closed before it is accepted (403), everything else passes."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """One connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)
