"""An engine stand-in that speaks the wire of SGLang 0.5.23's OpenAI routes and misbehaves as it is told.

It keeps every request it gets, generates one word a token, and has the answers' exact shape (role chunk, content
chunks, finish chunk, usage chunk, `[DONE]`). Runs in the test's event loop, or, to be stopped by signal, as a process:
`python -m hanmaru_testing.scripted_engine_sse PORT KEY`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiohttp import web

CREATED = 1_700_000_000


class Mood(StrEnum):
    """What the engine does with the next requests."""

    WELL = "well"
    HANGS_AT_ONCE = "hangs-at-once"
    """Takes the request and never answers."""
    HANGS_MID_STREAM = "hangs-mid-stream"
    """Goes silent after `breaks_after` tokens."""
    DIES_AT_ONCE = "dies-at-once"
    """Ends the connection without an answer."""
    DIES_MID_STREAM = "dies-mid-stream"
    FAILS_MID_STREAM = "fails-mid-stream"
    """Sends an error event of its own, as SGLang does for an aborted request."""
    REFUSES = "refuses"
    """400, with words nobody outside should read."""
    ERRS = "errs"
    """500."""
    FULL = "full"
    """503."""
    TALKS_NONSENSE = "talks-nonsense"
    """200, and no JSON."""


@dataclass
class ScriptedEngine:
    """One engine. Fields may be changed between requests."""

    api_key: str
    mood: Mood = Mood.WELL
    tokens: int = 4
    """Tokens generated when the request asks for more."""
    token_interval_s: float = 0.0
    breaks_after: int = 2
    payload_bytes: int = 0
    """Extra text in each token."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    refused: int = 0
    """Requests without the right key."""
    running: int = 0
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    """A client has left a request before its end."""
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, "chat.completion")

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, "text_completion")

    async def _serve(self, request: web.Request, kind: str) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.api_key}":
            self.refused += 1
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        try:
            return await self._act(request, body, kind)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise
        finally:
            self.running -= 1

    async def _act(self, request: web.Request, body: dict[str, Any], kind: str) -> web.StreamResponse:
        if self.mood is Mood.HANGS_AT_ONCE:
            await asyncio.Event().wait()
        if self.mood is Mood.DIES_AT_ONCE:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status = {Mood.REFUSES: 400, Mood.ERRS: 500, Mood.FULL: 503}.get(self.mood)
        if status is not None:
            return web.json_response({"object": "error", "message": "secret internals", "code": status}, status=status)
        if self.mood is Mood.TALKS_NONSENSE:
            return web.Response(text="<html>it works!</html>", content_type="text/html")
        prompt = body["input_ids"] if kind == "chat.completion" else body["prompt"]
        count = min(self.tokens, body["max_tokens"])
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": count * body.get("n", 1),
            "total_tokens": len(prompt) + count * body.get("n", 1),
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        head = {"id": body["rid"], "created": CREATED, "model": body["model"]}
        if not body["stream"]:
            await asyncio.sleep(self.token_interval_s * count)
            text = "".join(self._word(i) for i in range(count))
            answer = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
            content = {"message": answer} if kind == "chat.completion" else {"text": text}
            choices = [{"index": i, **content, "finish_reason": "length"} for i in range(body.get("n", 1))]
            return web.json_response({**head, "object": kind, "choices": choices, "usage": usage})
        return await self._stream(request, {**head, "object": f"{kind}.chunk"}, count, usage)

    async def _stream(
        self, request: web.Request, head: dict[str, Any], count: int, usage: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choices: list[Any], **more: Any) -> None:
            await response.write(_event({**head, "choices": choices, **more}))

        await send([_choice({"role": "assistant", "content": ""})])
        for i in range(count):
            if i == self.breaks_after and self.mood is Mood.HANGS_MID_STREAM:
                await asyncio.Event().wait()
            if i == self.breaks_after and self.mood is Mood.DIES_MID_STREAM:
                assert request.transport is not None
                request.transport.abort()
                return response
            if i == self.breaks_after and self.mood is Mood.FAILS_MID_STREAM:
                await response.write(_event({"error": {"object": "error", "message": "secret internals", "code": 500}}))
                await response.write(b"data: [DONE]\n\n")
                return response
            await send([_choice({"content": self._word(i)})])
            if self.token_interval_s:
                await asyncio.sleep(self.token_interval_s)
        await send([_choice({}, finish="length")])
        await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _word(self, index: int) -> str:
        return f"word{index} " + "x" * self.payload_bytes


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"reasoning_content": None, **delta}, "logprobs": None, "finish_reason": finish}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


@asynccontextmanager
async def scripted_engine(api_key: str, port: int = 0, **script: Any) -> AsyncIterator[ScriptedEngine]:
    """An engine that listens on loopback; `script` sets its fields."""
    engine = ScriptedEngine(api_key, **script)
    runner = web.AppRunner(engine.application(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    engine.port = runner.addresses[0][1]
    try:
        yield engine
    finally:
        await runner.cleanup()


async def _serve_for_ever(port: int, api_key: str) -> None:
    async with scripted_engine(api_key, port, tokens=1000, token_interval_s=0.05):
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_for_ever(int(sys.argv[1]), sys.argv[2]))
