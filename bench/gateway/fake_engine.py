"""A fake SGLang engine that costs almost nothing: sixteen tokens, at once, in the engine's own shapes.

`run.py` and `candidates.py` start it as a process behind every path they compare, so that what is measured is the
path. It is an `asyncio.Protocol` on purpose: a web framework here would cost more than the proxies under test.
Each streamed chunk leaves in a loop turn of its own, as a real engine's does, so no proxy is flattered by one big read.
It leaves out authentication, tokens' real counts, and every parameter but `stream` and `stream_options`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvloop

MODEL = "bench-model"
NUM_TOKENS = 16
TOKEN = " tok"
USAGE = {"prompt_tokens": 50, "total_tokens": 50 + NUM_TOKENS, "completion_tokens": NUM_TOKENS}
END_OF_STREAM = b"data: [DONE]\n\n"
NAMES = {"id": "0123456789abcdef0123456789abcdef", "created": 1_790_000_000, "model": MODEL}


def _http(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    return (b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, content_type, len(body))) + body


def _http_json(payload: object) -> bytes:
    return _http(json.dumps(payload, separators=(",", ":")).encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(payload: object) -> bytes:
    return _chunk(b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n")


def _deltas(is_chat: bool) -> Iterator[bytes]:
    """SSE events of one answer, usage excluded: a role chunk (chat), sixteen tokens, and the finish reason."""
    kind = {**NAMES, "object": "chat.completion.chunk" if is_chat else "text_completion"}

    def choice(content: dict[str, Any], finish_reason: str | None) -> bytes:
        part = {"delta": content} if is_chat else {"text": content.get("content", "")}
        one = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason, "matched_stop": None}
        return _event({**kind, "choices": [one], "usage": None})

    if is_chat:
        yield choice({"role": "assistant", "content": ""}, None)
    for _ in range(NUM_TOKENS):
        yield choice({"content": TOKEN}, None)
    yield choice({}, "length")


def _whole(is_chat: bool) -> bytes:
    text = TOKEN * NUM_TOKENS
    part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    one = {"index": 0, **part, "logprobs": None, "finish_reason": "length", "matched_stop": None}
    kind = "chat.completion" if is_chat else "text_completion"
    return _http_json({**NAMES, "object": kind, "choices": [one], "usage": USAGE})


SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
SSE_TAIL = _chunk(END_OF_STREAM) + b"0\r\n\r\n"
STREAMS: dict[tuple[bool, bool], list[bytes]] = {}
"""(is chat, usage asked) → one write a loop turn."""
for _is_chat in (True, False):
    for _with_usage in (True, False):
        _usage = [_event({**NAMES, "choices": [], "usage": USAGE})] if _with_usage else []
        _first, *_rest = _deltas(_is_chat)
        STREAMS[_is_chat, _with_usage] = [SSE_HEAD + _first, *_rest, *_usage, SSE_TAIL]
WHOLES = {is_chat: _whole(is_chat) for is_chat in (True, False)}
MODEL_INFO = _http_json(
    {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True, "model_type": "exaone_moe"}
)
SERVER_INFO = _http_json(
    {"model_path": MODEL, "served_model_name": MODEL, "tp_size": 1, "dp_size": 1, "version": "0.5.23"}
)
PAGES = {
    b"/health": _http(b"", b"text/plain"),
    b"/health_generate": _http(b"", b"text/plain"),
    b"/v1/models": _http_json(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "sglang"}]}
    ),
    b"/model_info": MODEL_INFO,
    b"/get_model_info": MODEL_INFO,
    b"/server_info": SERVER_INFO,
    b"/get_server_info": SERVER_INFO,
}
NOT_FOUND = _http(b'{"object":"error","message":"Not Found","code":404}', status=b"404 Not Found")
ANSWERED_PATHS = {b"/v1/chat/completions": True, b"/v1/completions": False}
HEADERS_END = b"\r\n\r\n"


def _body_size(head: bytes) -> int:
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    end = lowered.find(b"\r\n", start + 17)
    return int(lowered[start + 17 : end if end > 0 else None])


class EngineProtocol(asyncio.Protocol):
    """One client connection: whole requests in, canned answers out, in order."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._buffer = b""
        self._pending: Iterator[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._answer_next()

    def _answer_next(self) -> None:
        """Answer the first whole request, unless an answer is still being written."""
        if self._pending is not None:
            return
        end = self._buffer.find(HEADERS_END)
        if end < 0:
            return
        head = self._buffer[:end]
        whole = end + 4 + _body_size(head)
        if len(self._buffer) < whole:
            return
        body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        is_chat = ANSWERED_PATHS.get(path)
        if is_chat is None:
            self._transport.write(PAGES.get(path, NOT_FOUND))
            return
        request = json.loads(body)
        if not request.get("stream"):
            self._transport.write(WHOLES[is_chat])
            return
        with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self._pending = iter(STREAMS[is_chat, with_usage])
        self._write_next()

    def _write_next(self) -> None:
        if self._transport.is_closing() or self._pending is None:
            return
        piece = next(self._pending, None)
        if piece is None:
            self._pending = None
            self._answer_next()
            return
        self._transport.write(piece)
        if self._interval_s:
            self._loop.call_later(self._interval_s, self._write_next)
        else:
            self._loop.call_soon(self._write_next)


async def serve(port: int, interval_s: float = 0.0) -> None:
    """Listen on loopback until cancelled; streamed chunks are `interval_s` apart."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineProtocol(interval_s), "127.0.0.1", port, backlog=1024)
    async with server:
        print("ready", flush=True)
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--interval-s", type=float, default=0.0, help="pause between streamed chunks")
    args = parser.parse_args()
    uvloop.run(serve(args.port, args.interval_s))


if __name__ == "__main__":
    main()
