"""The gateway when its clients, its workers or its Redis misbehave: a clear end, nothing owed, nothing hung."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hanmaru_contracts import keys
from hanmaru_testing.fleet import renewing, worker
from hanmaru_testing.gateway import Rig, eventually
from hanmaru_testing.scripted_engine_sse import Mood

pytestmark = pytest.mark.timeout(90)

LIMITS = [{"requestsPerMinute": 1000, "outputTokensPerMinute": 100_000}]
FULL = 100_000 * 60_000


async def open_raw(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", rig.gateway.http.port)


def head(rig: Rig, length: int, *more: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {rig.key}", *more]
    return ("\r\n".join([*lines, f"Content-Length: {length}", "", ""])).encode()


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


# --- Workers ---


async def test_no_worker_is_503_with_retry_after(make_rig: Any) -> None:
    async with make_rig(workers=0) as rig, await rig.chat() as response:
        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1
        assert (await rig.error_of(response))["code"] == "no_worker"


async def test_a_deregistered_worker_gets_nothing_and_its_route_is_503_not_404(rig: Rig) -> None:
    fleet = rig.gateway.registry
    rig.workers[0].record = msgspec.structs.replace(rig.workers[0].record, draining=True)
    await rig.workers[0].write()
    await eventually(lambda: not fleet.fleet.models)
    async with await rig.chat() as response:
        assert response.status == 503
    async with rig.client.get("/v1/models") as response:
        assert (await response.json())["data"] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mood", [Mood.DIES_AT_ONCE, Mood.ERRS, Mood.FULL])
async def test_a_worker_that_breaks_before_its_first_byte_is_replaced(make_rig: Any, mood: Mood, stream: bool) -> None:
    async with make_rig(workers=2) as rig:
        rig.engines[0].mood = mood
        for _ in range(6):
            async with await rig.chat(max_tokens=2, stream=stream) as response:
                assert response.status == 200
                assert b"word1" in await response.read()
        assert len(rig.engines[1].requests) == 6


async def test_a_worker_nobody_listens_for_is_502_and_suspected_until_it_renews(make_rig: Any) -> None:
    async with make_rig(workers=0) as rig:
        ghost = worker(rig.redis, rig.secret, address="127.0.0.1:9")
        await ghost.write()
        await eventually(lambda: rig.gateway.registry.fleet.models)
        async with await rig.chat() as response:
            assert response.status == 502
            assert (await rig.error_of(response))["code"] == "worker_lost"
        async with await rig.chat() as response:
            assert response.status == 503
        await asyncio.sleep(0.01)  # a renewal must differ from the record before it
        await ghost.write()
        await eventually(lambda: rig.gateway.registry.workers(next(iter(rig.gateway.registry.fleet.models.values()))))


@pytest.mark.parametrize("mood", [Mood.DIES_MID_STREAM, Mood.HANGS_MID_STREAM, Mood.FAILS_MID_STREAM])
async def test_a_stream_whose_worker_breaks_ends_with_an_error_event_and_is_settled(make_rig: Any, mood: Mood) -> None:
    async with make_rig(limits=LIMITS, script={"mood": mood, "tokens": 100}, stall_timeout_s=0.5) as rig:
        started = time.monotonic()
        async with await rig.chat(max_tokens=2500, stream=True) as response:
            assert response.status == 200
            body = await response.read()
        assert time.monotonic() - started < 5
        events = body.decode().removesuffix("\n\n").split("\n\n")
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["error"]["code"] == "worker_lost"
        assert "word1" in body.decode()
        assert "secret internals" not in body.decode()
        await rig.settled()
        assert FULL - 10 * 60_000 <= (await rig.levels())["output"] < FULL
        assert rig.gateway.registry.inflight_requests == 0
        if mood is Mood.HANGS_MID_STREAM:
            async with asyncio.timeout(5):
                await rig.engine.aborted.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_never_answers_ends_the_request(make_rig: Any, stream: bool) -> None:
    how = {"first_token_timeout_s": 0.5, "answer_timeout_s": 0.5}
    async with make_rig(limits=LIMITS, script={"mood": Mood.HANGS_AT_ONCE}, **how) as rig:
        async with await rig.chat(stream=stream, max_tokens=1000) as response:
            assert response.status == 502
        await rig.settled()
        assert (await rig.levels())["output"] == FULL


async def test_a_stopped_worker_ends_its_requests_and_gets_none_until_it_registers_again(make_rig: Any) -> None:
    async with make_rig(workers=0) as rig:
        stopped = worker(rig.redis, rig.secret)
        process = subprocess.Popen(  # noqa: ASYNC220  its signals are what matters
            [sys.executable, "-m", "hanmaru_testing.scripted_engine_sse", "24200", stopped.api_key],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            stopped.record = msgspec.structs.replace(stopped.record, address="127.0.0.1:24200")
            async with renewing(stopped):
                await eventually(lambda: rig.gateway.registry.fleet.models)
                await eventually(lambda: _answers(rig))
                response = await rig.chat(stream=True, max_tokens=1000)
                await response.content.readany()
            # The supervisor is stopped with its engine: nothing renews, and nothing is said.
            process.send_signal(signal.SIGSTOP)
            await eventually(lambda: not rig.gateway.registry.fleet.models)
            async with await rig.chat() as refused:
                assert refused.status == 503
            # A lease gone for a whole lease more ends what still waits, long before any stall bound.
            body = await asyncio.wait_for(response.read(), 15)
            assert b"worker_lost" in body
            process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
            async with await rig.chat() as refused:
                assert refused.status == 503
            await stopped.write()
            await eventually(lambda: rig.gateway.registry.fleet.models)
            async with await rig.chat(max_tokens=2) as response:
                assert response.status == 200
        finally:
            process.kill()
            process.wait()


async def _answers(rig: Rig) -> bool:
    async with await rig.chat(max_tokens=1) as response:
        return response.status == 200


async def test_a_forged_registration_receives_no_request(make_rig: Any) -> None:
    async with make_rig() as rig:
        forged = worker(rig.redis, rig.secret, address="127.0.0.1:24201", replica="forged")
        seen: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.read(100))
            writer.close()

        thief = await asyncio.start_server(note, "127.0.0.1", 24201)
        async with thief:
            neighbour = keys.replica_key(rig.secret, rig.workers[0].record.model, rig.workers[0].record.replica)
            for key in (neighbour, b"x" * 32):
                await forged.write(signed_with=key)
                await asyncio.sleep(0.3)
                for _ in range(10):
                    async with await rig.chat(max_tokens=1) as response:
                        assert response.status == 200
        assert seen == []
        assert len(rig.engine.requests) == 20


# --- Redis ---


@pytest.mark.parametrize("how", ["stopped", "hanging"])
async def test_without_redis_admitted_requests_finish_and_new_ones_are_503_within_2_s(make_rig: Any, how: str) -> None:
    async with make_rig(limits=LIMITS, script={"tokens": 30, "token_interval_s": 0.1}) as rig:
        running = await rig.chat(stream=True, max_tokens=30)
        await running.content.readany()
        rig.server.pause() if how == "hanging" else rig.server.stop()
        try:
            for _ in range(3):
                started = time.monotonic()
                async with await rig.chat() as response:
                    assert response.status == 503
                    assert "retry-after" in response.headers
                assert time.monotonic() - started < 2
            assert (await running.read()).endswith(b"data: [DONE]\n\n")
        finally:
            rig.server.resume() if how == "hanging" else rig.server.start()
        # Back, and when it was stopped even empty: tenants are reloaded, workers register by themselves.
        await eventually(lambda: _answers(rig))
        await rig.settled()


@pytest.mark.parametrize("how", ["stopped", "hanging"])
async def test_without_redis_even_a_tenant_without_limits_is_503_after_2_s(make_rig: Any, how: str) -> None:
    async with make_rig() as rig:
        rig.server.pause() if how == "hanging" else rig.server.stop()
        try:
            await asyncio.sleep(2)  # it is the claim
            async with await rig.chat() as response:
                assert response.status == 503
        finally:
            rig.server.resume() if how == "hanging" else rig.server.start()
        await eventually(lambda: _answers(rig))


async def test_a_revoked_key_ends_its_running_stream(make_rig: Any) -> None:
    async with make_rig(script={"tokens": 1000, "token_interval_s": 0.05}) as rig:
        running = await rig.chat(stream=True, max_tokens=1000)
        await running.content.readany()
        rig.tenants[0]["credentials"] = []
        rig.write_tenants()
        body = await asyncio.wait_for(running.read(), 10)
        last = body.decode().removesuffix("\n\n").split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        async with asyncio.timeout(5):
            await rig.engine.aborted.wait()


async def test_another_tenants_change_disturbs_no_stream(make_rig: Any) -> None:
    async with make_rig(script={"tokens": 60, "token_interval_s": 0.05}) as rig:
        running = await rig.chat(stream=True, max_tokens=60)
        await running.content.readany()
        rig.tenants[1]["credentials"] = []
        rig.write_tenants()
        assert (await running.read()).endswith(b"data: [DONE]\n\n")


# --- Clients ---


async def test_a_body_over_the_bound_is_413_declared_chunked_or_packed(make_rig: Any) -> None:
    async with make_rig(body_bytes=100_000) as rig:
        large = chat_body(user="x" * 200_000)

        async def pieces() -> Any:
            for i in range(0, len(large), 10_000):
                yield large[i : i + 10_000]

        bomb = gzip.compress(b" " * 50_000_000)
        assert len(bomb) < 100_000
        for data, headers in ((large, {}), (pieces(), {}), (bomb, {"Content-Encoding": "gzip"})):
            async with rig.client.post("/v1/chat/completions", data=data, headers=headers) as response:
                assert response.status == 413
                assert (await rig.error_of(response))["code"] == "body_too_large"
        async with await rig.chat(max_tokens=1) as response:
            assert response.status == 200


async def test_a_body_of_16_mib_is_read_and_one_byte_more_is_not(rig: Rig) -> None:
    shell = len(chat_body(user=""))
    for size, status in ((16 * 1024 * 1024, 200), (16 * 1024 * 1024 + 1, 413)):
        async with rig.client.post(
            "/v1/chat/completions", data=io.BytesIO(chat_body(user="x" * (size - shell)))
        ) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("br", b"whatever"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(chat_body())[:-9]),
        ("deflate", b""),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_400(rig: Rig, encoding: str, data: bytes) -> None:
    headers = {"Content-Encoding": encoding}
    async with rig.client.post("/v1/chat/completions", data=data, headers=headers) as response:
        assert response.status == 400
        assert (await rig.error_of(response))["code"] == "invalid_request"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b'"text"', b'{"model":"tiny"}', b"\xff\xfe", b'{"model":"\xff"}', b"[" * 100_000,
     b'{"a":' * 100_000, b'{"model":"tiny","messages":' + b"[" * 100_000],
)  # fmt: skip
async def test_a_body_that_is_no_request_is_400(rig: Rig, data: bytes) -> None:
    async with rig.client.post("/v1/chat/completions", data=data) as response:
        assert response.status == 400
        assert (await rig.error_of(response))["code"] == "invalid_request"


async def test_a_body_that_comes_too_slowly_is_408(make_rig: Any) -> None:
    async with make_rig(body_timeout_s=0.5) as rig:
        reader, writer = await open_raw(rig)
        writer.write(head(rig, 1000) + b"{")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answer
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nA:"])
async def test_a_head_that_never_ends_is_hung_up_on(make_rig: Any, sent: bytes) -> None:
    async with make_rig(header_timeout_s=0.3) as rig:
        reader, writer = await open_raw(rig)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize("one_header", [True, False])
async def test_a_head_without_end_is_refused(rig: Rig, one_header: bool) -> None:
    reader, writer = await open_raw(rig)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n" + (b"a: " if one_header else b""))
    try:
        for _ in range(200):
            writer.write(b"x" * 1000 if one_header else b"a: " + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    answer = await _read_until_end(reader)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x00\xff\x01",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_an_openai_error(rig: Rig, sent: bytes) -> None:
    reader, writer = await open_raw(rig)
    writer.write(sent)
    answer = await _read_until_end(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    writer.close()


async def _read_until_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""


async def test_a_half_closed_client_leaves_nothing_behind(rig: Rig) -> None:
    rig.engine.token_interval_s, rig.engine.tokens = 0.05, 1000
    reader, writer = await open_raw(rig)
    body = chat_body(stream=True, max_tokens=1000)
    writer.write(head(rig, len(body)) + body)
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
        await eventually(lambda: rig.gateway.registry.inflight_requests == 0 and rig.engine.running == 0)
    writer.close()


async def test_a_client_that_does_not_read_is_hung_up_on_and_buffers_little(make_rig: Any) -> None:
    script = {"tokens": 100_000, "payload_bytes": 20_000}
    async with make_rig(script=script, write_timeout_s=0.5, context_tokens=200_000) as rig:
        reader, writer = await open_raw(rig)
        body = chat_body(stream=True, max_tokens=100_000)
        writer.write(head(rig, len(body)) + body)
        await asyncio.wait_for(reader.readexactly(10), 10)
        writer.transport.pause_reading()
        before = _resident_bytes()
        async with asyncio.timeout(20):
            await rig.engine.aborted.wait()
        # The engine runs in this process too; what matters is that 2 GB were not taken in.
        assert _resident_bytes() - before < 100_000_000
        writer.transport.abort()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_idle_and_slow_clients_do_not_slow_others(rig: Rig) -> None:
    idle = [await open_raw(rig) for _ in range(200)]
    for _, writer in idle[:100]:
        writer.write(head(rig, 1_000_000) + b"{")
    started = time.monotonic()
    for _ in range(20):
        async with await rig.chat(max_tokens=1) as response:
            assert response.status == 200
    assert time.monotonic() - started < 5
    for _, writer in idle:
        writer.close()


async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    reader, writer = await open_raw(rig)
    body = chat_body(max_tokens=1)
    writer.write(
        (head(rig, len(body), "x-request-id: first") + body) + (head(rig, len(body), "x-request-id: second") + body)
    )
    answers = b""
    while answers.count(b"HTTP/1.1 200") < 2 or b'"usage"' not in answers.rpartition(b"HTTP/1.1")[2]:
        answers += await asyncio.wait_for(reader.read(65536), 10)
    assert answers.index(b"x-request-id: first") < answers.index(b"x-request-id: second")
    writer.close()


async def test_an_unknown_client_is_refused_before_its_body_is_kept(rig: Rig) -> None:
    reader, writer = await open_raw(rig)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10000000\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_a_burst_waits_for_redis_instead_of_failing(make_rig: Any) -> None:
    async with make_rig(limits=[{"requestsPerMinute": 100_000}]) as rig:
        responses = await asyncio.gather(*(rig.chat(max_tokens=1) for _ in range(300)))
        assert {response.status for response in responses} == {200}
        for response in responses:
            response.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_outlasts_the_shutdown_ends_with_a_word(make_rig: Any, stream: bool) -> None:
    script = {"tokens": 1000, "token_interval_s": 0.05}
    async with make_rig(script=script, shutdown_timeout_s=1.0) as rig:
        asking = asyncio.create_task(rig.chat(stream=stream, max_tokens=1000))
        await eventually(lambda: rig.engine.running == 1)
        await asyncio.sleep(0.2)
        await rig.gateway.http.stop()
        body = await (await asking).read()
    last = body.decode().removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "shutting_down"
    assert (await asking).status == (200 if stream else 503)


async def test_running_answers_finish_while_nothing_new_is_taken(make_rig: Any) -> None:
    async with make_rig(script={"tokens": 20, "token_interval_s": 0.05}, shutdown_timeout_s=10.0) as rig:
        running = await rig.chat(stream=True, max_tokens=20)
        stopping = asyncio.create_task(rig.gateway.http.stop())
        await asyncio.sleep(0.3)
        with pytest.raises(OSError):  # noqa: PT011  refused, whatever the system calls it
            await open_raw(rig)
        assert (await running.read()).endswith(b"data: [DONE]\n\n")
        await stopping
