"""An answer is read whole or not at all; a connection is used again only when nothing of the last answer is left."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hanmaru_gateway.dispatch.connections import Connection, ConnectionPool, LostError, UnreachableError
from hypothesis import given, settings
from hypothesis import strategies as st

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: 2\r\n\r\n{}"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


class Engine:
    """Answers each request on a connection with the next of `answers`, piece by piece; counts its connections."""

    def __init__(self, *answers: bytes, cuts: tuple[int, ...] = (), hangs_up: bool = False) -> None:
        self.answers = list(answers)
        self.cuts = cuts
        self.hangs_up = hangs_up
        self.connections = 0
        self.ended = asyncio.Event()
        self.received_bytes = 0
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.received_bytes += len(await reader.readexactly(size))
                self.asked.set()
                answer = self.answers.pop(0)
                places = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in self.cuts)})
                for start, end in itertools.pairwise(places):
                    writer.write(answer[start:end])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.hangs_up:
                    return
            await reader.read()  # until the client ends it
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def running(engine: Engine, *, idle_s: float = 30.0) -> AsyncIterator[tuple[ConnectionPool, str]]:
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    pool = ConnectionPool(connect_timeout_s=5.0, idle_s=idle_s)
    try:
        yield pool, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        pool.close()
        server.close()


async def whole(connection: Connection) -> bytes:
    return b"".join([part async for part in parts_of(connection)])


async def parts_of(connection: Connection) -> AsyncIterator[bytes]:
    while part := await connection.read():
        yield part


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(deadline=None, max_examples=25)
def test_however_an_answer_is_cut_it_is_read_whole(answer: bytes, cuts: list[int]) -> None:
    async def read() -> tuple[int, bytes]:
        async with running(Engine(answer, cuts=tuple(cuts))) as (pool, address):
            connection = await pool.post(address, REQUEST)
            return connection.status, await whole(connection)

    assert asyncio.run(read()) == (200, b"hello")


async def test_a_connection_whose_answer_was_read_is_used_again() -> None:
    engine = Engine(CHUNKED, SIZED, CHUNKED)
    async with running(engine) as (pool, address):
        for _ in range(3):
            connection = await pool.post(address, REQUEST)
            assert await whole(connection) == b"hello"
            connection.release()
            connection.close()  # nothing: it was given back
    assert engine.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(SIZED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), id="the engine says so"),
        pytest.param(SIZED + b"HTTP/1.1 200 OK\r\n", id="more came than was asked for"),
    ],
)
async def test_a_connection_is_not_used_again_when(answer: bytes) -> None:
    engine = Engine(answer, SIZED)
    async with running(engine) as (pool, address):
        for _ in range(2):
            try:
                connection = await pool.post(address, REQUEST)
                await whole(connection)
                connection.release()
            except LostError:
                continue
    assert engine.connections == 2


async def test_an_answer_given_up_ends_the_connection_which_is_how_the_engine_learns() -> None:
    engine = Engine(CHUNKED[:-5])
    async with running(engine) as (pool, address):
        connection = await pool.post(address, REQUEST)
        assert await connection.read() == b"hello"
        connection.release()
        await asyncio.wait_for(engine.ended.wait(), 5)


async def test_a_request_cancelled_before_its_answer_ends_the_connection() -> None:
    engine = Engine(b"")
    async with running(engine) as (pool, address):
        waiting = asyncio.create_task(pool.post(address, REQUEST))
        await asyncio.wait_for(engine.asked.wait(), 5)
        waiting.cancel()
        await asyncio.wait_for(engine.ended.wait(), 5)


@pytest.mark.parametrize("answer", [SIZED[:20], SIZED[:-1], CHUNKED[:-5], b"SSH-2.0-x\r\n"])
async def test_an_answer_that_is_cut_or_is_none_is_lost(answer: bytes) -> None:
    async def read(pool: ConnectionPool, address: str) -> bytes:
        return await whole(await pool.post(address, REQUEST))

    async with running(Engine(answer, hangs_up=True)) as (pool, address):
        with pytest.raises(LostError):
            await asyncio.wait_for(read(pool, address), 5)


async def test_a_head_without_end_is_lost() -> None:
    async with running(Engine(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000)) as (pool, address):
        with pytest.raises(LostError):
            await asyncio.wait_for(pool.post(address, REQUEST), 5)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:http", "nonsense", ""])
async def test_nobody_there_is_unreachable(address: str) -> None:
    pool = ConnectionPool(connect_timeout_s=5.0, idle_s=1.0)
    with pytest.raises(UnreachableError):
        await pool.post(address, REQUEST)


async def test_an_idle_connection_ends_after_a_while_and_is_forgotten() -> None:
    engine = Engine(SIZED)
    async with running(engine, idle_s=0.05) as (pool, address):
        connection = await pool.post(address, REQUEST)
        await whole(connection)
        connection.release()
        await asyncio.wait_for(engine.ended.wait(), 5)
        engine.answers.append(SIZED)
        assert await whole(await pool.post(address, REQUEST)) == b"hello"
    assert engine.connections == 2


async def test_a_caller_that_does_not_read_makes_the_engine_wait() -> None:
    size = 64 * 1024 * 1024
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        piece = b"x" * (256 * 1024)
        try:
            while sent < size:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    pool = ConnectionPool(connect_timeout_s=5.0, idle_s=1.0)
    connection = await pool.post(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", REQUEST)
    seen = -1
    while sent != seen:  # until it stands still
        seen = sent
        await asyncio.sleep(0.2)
    assert sent < size
    assert len(await whole(connection)) == size
    connection.release()
    pool.close()
    server.close()


async def test_a_long_body_arrives_whole() -> None:
    engine = Engine(SIZED)
    body = b"x" * (5 * 1024 * 1024)
    async with running(engine) as (pool, address):
        request = b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        assert await whole(await pool.post(address, request)) == b"hello"
    assert engine.received_bytes == len(body)
