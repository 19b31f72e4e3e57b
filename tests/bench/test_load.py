"""The benchmark's own instruments: a wrong or cut answer is an error, a right one is counted once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gateway"))

import fake_engine
import load

CLIENTS, REQUESTS = 4, 40


@asynccontextmanager
async def listening(protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Canned(asyncio.Protocol):
    """Answers every request with the same bytes, and hangs up afterwards when asked to."""

    def __init__(self, answer: bytes, *, hangs_up: bool = False) -> None:
        self._answer = answer
        self._hangs_up = hangs_up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)
        if self._hangs_up:
            self._transport.close()


def shot(url: str, *, is_streaming: bool = False, clients: int = CLIENTS, max_requests: int = REQUESTS) -> load.Shot:
    return load.Shot(url, clients, is_streaming, seconds=20.0, max_requests=max_requests)


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_every_right_answer_of_the_fake_engine_is_counted_once(is_streaming: bool) -> None:
    async with listening(lambda: fake_engine.EngineProtocol(0.0)) as url:
        result = await load.measure(shot(url, is_streaming=is_streaming))
    assert (result.requests, result.errors, result.first_error) == (REQUESTS, 0, "")
    assert 0 < result.ttfb_p50_ms <= result.p50_ms <= result.p99_ms


WHOLE_STREAM = b"".join(fake_engine.STREAMS[True, True])
FEW_TOKENS = fake_engine._http(b'{"choices":[{"message":{"content":" tok tok"}}]}')
ENDED_WITHOUT_DONE = WHOLE_STREAM.replace(fake_engine.SSE_TAIL, b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "is_streaming", "reason"),
    [
        (WHOLE_STREAM[:-40], True, "connection lost mid-answer"),
        (ENDED_WITHOUT_DONE, True, "without [DONE]"),
        (FEW_TOKENS, False, "2 tokens, expected 16"),
        (fake_engine.NOT_FOUND, False, "status 404"),
        (b"SSH-2.0-OpenSSH\r\n", False, "not HTTP"),
    ],
)
async def test_an_answer_that_is_cut_or_wrong_is_an_error(answer: bytes, is_streaming: bool, reason: str) -> None:
    async with listening(lambda: Canned(answer, hangs_up=True)) as url:
        result = await load.measure(shot(url, is_streaming=is_streaming, clients=1, max_requests=3))
    assert (result.requests, result.errors) == (0, 1)
    assert reason in result.first_error


async def test_a_connection_closed_after_a_whole_answer_is_opened_again() -> None:
    head, body = fake_engine.WHOLES[True].split(b"\r\n\r\n", 1)
    async with listening(lambda: Canned(head + b"\r\nconnection: close\r\n\r\n" + body, hangs_up=True)) as url:
        result = await load.measure(shot(url, max_requests=10))
    assert (result.requests, result.errors) == (10, 0)


async def test_no_two_prompts_of_a_shot_are_the_same() -> None:
    seen: list[bytes] = []

    class Heard(Canned):
        def data_received(self, data: bytes) -> None:
            seen.append(data.partition(b"\r\n\r\n")[2])
            super().data_received(data)

    async with listening(lambda: Heard(fake_engine.WHOLES[True])) as url:
        await load.measure(shot(url, max_requests=20))
    prompts = {json.loads(body)["messages"][0]["content"] for body in seen}
    assert len(prompts) == 20
    assert {len(prompt) for prompt in prompts} == {load.PROMPT_BYTES}


async def test_nothing_but_loopback_is_loaded() -> None:
    with pytest.raises(ValueError, match="not a loopback address"):
        await load.measure(shot("http://192.0.2.1:80"))


async def test_nobody_listening_is_one_error_a_client() -> None:
    async with listening(lambda: Canned(b"")) as url:
        pass
    result = await load.measure(shot(url))
    assert (result.requests, result.errors) == (0, CLIENTS)
