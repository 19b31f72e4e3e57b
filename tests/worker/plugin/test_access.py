"""Our allow-list in front of SGLang's own decision about keys, for both keys, no key and a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from hanmaru_worker.plugin import access
from sglang.srt.utils.auth import AuthLevel, decide_request_auth
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

KEYS = {"nobody": None, "stranger": "Bearer nonsense", "gateway": "Bearer api", "admin": "Bearer admin"}


def who_may(
    path: str, *, level: AuthLevel = AuthLevel.NORMAL, method: str = "GET", admin: str | None = "admin"
) -> set[str]:
    def is_allowed(header: str | None) -> bool:
        request: dict[str, Any] = {"method": method, "authorization_header": header, "api_key": "api"}
        decision = access.decide(decide_request_auth, path=path, auth_level=level, admin_api_key=admin, **request)
        return bool(decision.allowed)

    return {who for who, header in KEYS.items() if is_allowed(header)}


@pytest.mark.parametrize("path", sorted(access.FOR_ANYONE))
def test_health_is_for_anyone(path: str) -> None:
    assert who_may(path) == set(KEYS)


@pytest.mark.parametrize("path", sorted(access.FOR_GATEWAYS | access.FOR_THE_SUPERVISOR))
def test_what_requests_need_is_for_the_gateways(path: str) -> None:
    assert who_may(path) == {"gateway"}


@pytest.mark.parametrize("level", list(AuthLevel))
@pytest.mark.parametrize(
    "path",
    ["/server_info", "/abort_request", "/healthx", "/metrics/", "//generate", "/v1/chat/completions/", "", "/GENERATE"],
)
def test_everything_else_is_for_the_admin_key(path: str, level: AuthLevel) -> None:
    assert who_may(path, level=level) == {"admin"}


@pytest.mark.parametrize("path", ["/generate", "/server_info"])
def test_no_method_is_a_way_around(path: str) -> None:
    assert who_may(path, method="OPTIONS") == who_may(path)


def test_without_an_admin_key_sglang_decides_alone() -> None:
    assert who_may("/server_info", admin=None) == {"gateway"}
    assert who_may("/metrics", admin=None) == set(KEYS)


@pytest.mark.parametrize("admin", [None, "admin"])
def test_web_sockets_are_refused_where_there_is_an_admin_key(admin: str | None) -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app = Starlette(routes=[WebSocketRoute("/v1/realtime", echo)])
    access.refuse_web_sockets(None, app, api_key="api", admin_api_key=admin)
    client = TestClient(app)
    if admin:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
            pass
    else:
        with client.websocket_connect("/v1/realtime"):
            pass
