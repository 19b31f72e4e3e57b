from __future__ import annotations

from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest
from hanmaru_worker.furiosa_main import Doors, token_ids_first

KEY = "k" * 64


async def pass_through(path: str, authorization: str | None, kind: str = "http", method: str = "GET") -> Any:
    """What the app got or the door answered."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: MutableMapping[str, Any], _receive: Any, _send: Any) -> None:
        sent.append({"passed": scope["type"]})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nothing is read before it is known who asks")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", authorization.encode())] if authorization is not None else []
    await Doors(app, KEY)({"type": kind, "path": path, "headers": headers, "method": method}, receive, send)
    return sent[0].get("status") or sent[0].get("code") or sent[0]["passed"]


@pytest.mark.parametrize(
    ("path", "authorization", "outcome"),
    [
        ("/health", None, "http"),
        ("/v1/chat/completions", f"Bearer {KEY}", "http"),
        ("/v1/completions", f"Bearer {KEY}", "http"),
        ("/metrics", f"Bearer {KEY}", "http"),
        ("/metrics", None, 401),
        ("/v1/chat/completions", None, 401),
        ("/v1/chat/completions", "Bearer x", 401),
        ("/v1/chat/completions", KEY, 401),
        ("/version", f"Bearer {KEY}", 401),
        ("/tokenize", f"Bearer {KEY}", 401),
        ("/v1/responses", f"Bearer {KEY}", 401),
        ("/v1/responses/another-tenants", f"Bearer {KEY}", 401),
        ("/v1/embeddings", f"Bearer {KEY}", 401),
        ("/health/../tokenize", None, 401),
    ],
)
async def test_who_may_pass_where(path: str, authorization: str | None, outcome: int | str) -> None:
    assert await pass_through(path, authorization) == outcome


async def test_other_ways_in_are_closed() -> None:
    assert await pass_through("/v1/chat/completions", None, method="OPTIONS") == 401
    assert await pass_through("/v1/chat/completions", f"Bearer {KEY}", kind="websocket") == 1008
    assert await pass_through("", None, kind="lifespan") == "lifespan"


async def test_a_chats_prompt_is_the_gateways_where_it_sent_one() -> None:
    async def preprocess(*, request: Any, messages: Any) -> Any:
        return messages, ["text"], [{"prompt_token_ids": [9]}]

    ours = token_ids_first(preprocess)
    with_ids = SimpleNamespace(model_extra={"input_ids": [1, 2, 3], "rid": "x"})
    assert (await ours(request=with_ids, messages=[""]))[2] == [{"prompt_token_ids": [1, 2, 3]}]
    for extra in ({}, None):
        found = await ours(request=SimpleNamespace(model_extra=extra), messages=["hello"])
        assert found == (["hello"], ["text"], [{"prompt_token_ids": [9]}])
