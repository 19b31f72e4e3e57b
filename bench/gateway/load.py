"""A closed-loop load client: C connections, each sends its next request when the last answer is whole.

`run.py` calls `measure` (in a process pinned beside the fake engine) and reports what it returns; by hand:
`python bench/gateway/load.py --url http://127.0.0.1:8000 --clients 64 --seconds 3 [--stream] [--model M]`,
the key on standard input.
An answer counts only when it is a 200, complete, and holds all the tokens the fake engine made; anything else is an
error, and an error fails the caller's run. A server may close a connection after a whole answer: the client connects
again, as all do. It sends to loopback only, bounded in seconds and in requests. Left out: open-loop arrivals and
think time (the question here is what a proxy costs, not how it queues).
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop
from fake_engine import MODEL, NUM_TOKENS, TOKEN

PROMPT_BYTES = 200
STALL_LIMIT_S = 20.0
"""A connection that gets nothing for this long is an error: a proxy that hangs must not hang the benchmark."""
TOKEN_BYTES = TOKEN.encode()
DONE_MARK = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Shot:
    """What to send: one request, over and over."""

    url: str
    """`http://127.0.0.1:PORT` of the path under test."""
    clients: int
    is_streaming: bool
    seconds: float
    """No request starts later than this; the last ones are waited for."""
    model: str = MODEL
    key: str = "unused"
    max_requests: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """What came back. Times in milliseconds; `rps` counts whole, right answers only."""

    requests: int
    errors: int
    seconds: float
    rps: float
    p50_ms: float
    p99_ms: float
    ttfb_p50_ms: float
    first_error: str = ""


@dataclass(slots=True)
class _Tally:
    latencies_s: list[float] = field(default_factory=list)
    first_bytes_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    started: int = 0
    serial: int = os.getpid() % 1_000_000 * 1_000_000
    """Other processes' shots send other prompts."""


SERIAL = b"000000000000"
"""Its place in a request is overwritten by a number, so that no two prompts of a shot are the same."""


def request_bytes(shot: Shot) -> bytes:
    """The HTTP/1.1 request of a shot: a chat completion with a 200-byte prompt that begins with `SERIAL`."""
    payload: dict[str, object] = {
        "model": shot.model,
        "messages": [
            {"role": "user", "content": (SERIAL.decode() + " the quick brown fox jumps over it" * 8)[:PROMPT_BYTES]}
        ],
        "max_tokens": NUM_TOKENS,
    }
    if shot.is_streaming:
        payload |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(payload).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(shot.url).netloc}\r\n"
        f"authorization: Bearer {shot.key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def percentile(sorted_values: list[float], share: float) -> float:
    """Nearest-rank percentile; NaN when there is nothing to rank."""
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


class _Client(asyncio.Protocol):
    """One client's closed loop, over as many connections as the server makes necessary."""

    def __init__(self, shot: Shot, tally: _Tally, request: bytes, deadline_s: float) -> None:
        self._shot, self._tally, self._deadline_s = shot, tally, deadline_s
        self._before, _, self._behind = request.partition(SERIAL)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_s = time.perf_counter()
        self._is_waiting = False
        self._transport: asyncio.Transport | None = None
        """None until connected for the first time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def _send(self) -> None:
        now_s = time.perf_counter()
        if now_s >= self._deadline_s or self._tally.started >= self._shot.max_requests:
            self._finish()
            return
        self._tally.started += 1
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._sent_s = self.heard_s = now_s
        self._first_byte_s: float | None = None
        self._is_complete = False
        self._is_waiting = True
        assert self._transport is not None
        self._transport.write(b"%b%012d%b" % (self._before, self._tally.serial + self._tally.started, self._behind))

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"not HTTP: {error}")
            return
        if self._is_complete:
            self._check()

    def on_body(self, body: bytes) -> None:
        if self._first_byte_s is None:
            self._first_byte_s = self.heard_s
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = True
        self._is_kept_alive = self._parser.should_keep_alive()  # the parser forgets it once fed past this point

    def _check(self) -> None:
        body = b"".join(self._body)
        status = self._parser.get_status_code()
        if status != 200:
            self.fail(f"status {status}: {body[:200].decode(errors='replace')}")
        elif (num_tokens := body.count(TOKEN_BYTES)) != NUM_TOKENS:
            self.fail(f"{num_tokens} tokens, expected {NUM_TOKENS}")
        elif self._shot.is_streaming and DONE_MARK not in body[-32:]:
            self.fail("stream ended without [DONE]")
        else:
            self._tally.latencies_s.append(self.heard_s - self._sent_s)
            self._tally.first_bytes_s.append((self._first_byte_s or self.heard_s) - self._sent_s)
            self._is_waiting = False
            if self._is_kept_alive:
                self._send()
            else:
                assert self._transport is not None
                self._transport.close()
                self._connecting = asyncio.create_task(self.connect())

    async def connect(self) -> None:
        """Open a connection; the loop starts, or goes on, by itself."""
        address = urlsplit(self._shot.url)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, address.hostname or "", address.port or 80)
        except OSError as error:
            self.fail(f"cannot connect: {error}")

    def fail(self, reason: str) -> None:
        """Count one error and stop this client."""
        self._tally.errors.append(reason)
        self._is_waiting = False
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_waiting:
            self.fail(f"connection lost mid-answer: {exc!r}")

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport is not None:
            self._transport.close()


async def measure(shot: Shot) -> Result:
    """Run one shot to its end. Never raises for what the server does: that is `errors` and `first_error`."""
    host = urlsplit(shot.url).hostname or ""
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address; this client loads nothing else")
    tally, request = _Tally(), request_bytes(shot)
    started_s = time.perf_counter()
    clients = [_Client(shot, tally, request, started_s + shot.seconds) for _ in range(shot.clients)]
    await asyncio.gather(*(client.connect() for client in clients))
    waiting: set[asyncio.Future[None]] = {client.done for client in clients}
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=1.0)
        now_s = time.perf_counter()
        for client in clients:
            if not client.done.done() and now_s - client.heard_s > STALL_LIMIT_S:
                client.fail(f"nothing heard for {STALL_LIMIT_S:.0f} s")
    elapsed_s = time.perf_counter() - started_s
    latencies_s, first_bytes_s = sorted(tally.latencies_s), sorted(tally.first_bytes_s)
    return Result(
        requests=len(latencies_s),
        errors=len(tally.errors),
        seconds=elapsed_s,
        rps=len(latencies_s) / elapsed_s,
        p50_ms=percentile(latencies_s, 0.50) * 1e3,
        p99_ms=percentile(latencies_s, 0.99) * 1e3,
        ttfb_p50_ms=percentile(first_bytes_s, 0.50) * 1e3,
        first_error=tally.errors[0] if tally.errors else "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    key = "unused" if sys.stdin.isatty() else sys.stdin.read().strip() or "unused"
    result = uvloop.run(measure(Shot(args.url, args.clients, args.stream, args.seconds, args.model, key)))
    print(json.dumps(asdict(result)))
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
