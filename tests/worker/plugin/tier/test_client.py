"""The tier's thread against servers that are no Redis: every call ends in time with nothing, and none raises."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hanmaru_redis.opening import open_redis
from hanmaru_redis.settings import access_to
from hanmaru_testing.engine import free_loopback_port
from hanmaru_testing.redis_server import RedisServer
from hanmaru_worker.plugin.tier import client as client_module
from hanmaru_worker.plugin.tier import scripts
from hanmaru_worker.plugin.tier.client import MARGIN_S, Client
from hanmaru_worker.plugin.tier.naming import PageName
from hanmaru_worker.plugin.tier.store import Frame, Limits

pytestmark = pytest.mark.timeout(60)

LIMITS = Limits(shard_bytes=10_000, life_ms=60_000, lookup_s=0.4, read_s=0.4, write_s=0.4)
NAME = PageName("hm:{tier:a/b:0}:page:x", "hm:{tier:a/b:0}:index", "hm:{tier:a/b:0}:bytes")
NOTHING: list[bytes | None] = [None]


@contextmanager
def answering(answer: bytes, *, stays: bool) -> Iterator[int]:
    """A server that answers whatever is said with the same bytes and then closes or says no more; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                self.request.sendall(answer)
                if not stays:
                    return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def client_of(port: int, failures: Counter[str], password: str = "x") -> Iterator[Client]:
    client = Client(
        access_to(f"redis://127.0.0.1:{port}/0", "tier", password), LIMITS, lambda reason: failures.update([reason])
    )
    try:
        yield client
    finally:
        client.close()


ANSWERS = {
    "garbage": b"\x00\xffgarbage\r\n",
    "half of an answer": b"$1000\r\nabc",
    "a size beyond all memory": b"$999999999999999\r\n",
    "a negative size": b"*-7\r\n$-9\r\n",
    "only errors": b"-ERR no\r\n",
    "always yes": b"+OK\r\n",
    "always one": b":1\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "a list in a list": b"*1\r\n*1\r\n*1\r\n:1\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "closes"])
@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_answers_nonsense_gives_no_page_and_no_error(what: str, stays: bool) -> None:
    failures: Counter[str] = Counter()
    with answering(ANSWERS[what], stays=stays) as port, client_of(port, failures) as client:
        for _ in range(3):
            began = time.monotonic()
            assert client.call(lambda store: store.read([NAME.entry], 100), LIMITS.read_s, NOTHING) == NOTHING
            assert client.call(lambda store: store.look_up([NAME.entry], [100]), LIMITS.lookup_s, [False]) == [False]
            said = client.call(lambda store: store.write([Frame(NAME, b"x" * 100)]), LIMITS.write_s, [None])
            assert said in ([None], [1])  # "always one" says that it was stored: who lies so loses a hit later
            assert time.monotonic() - began < 3 * (0.4 + MARGIN_S)
    assert failures or what in ("always one", "always yes", "a list in a list")


def test_nobody_there_costs_next_to_nothing() -> None:
    failures: Counter[str] = Counter()
    with client_of(free_loopback_port(), failures) as client:
        began = time.monotonic()
        for _ in range(50):
            assert client.call(lambda store: store.read([NAME.entry], 100), LIMITS.read_s, NOTHING) == NOTHING
        assert time.monotonic() - began < 2
    assert failures["unreachable"] == 3
    assert failures["paused"] == 47


def test_a_host_that_swallows_everything_costs_a_deadline_each_until_the_pause() -> None:
    failures: Counter[str] = Counter()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken by the kernel, and nobody ever reads
        with client_of(silent.getsockname()[1], failures) as client:
            began = time.monotonic()
            for _ in range(20):
                assert client.call(lambda store: store.read([NAME.entry], 100), LIMITS.read_s, NOTHING) == NOTHING
            assert time.monotonic() - began < 4 * (LIMITS.read_s + MARGIN_S)
    assert failures["timeout"] + failures["unreachable"] == 3


def test_a_slow_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy node a process may stand still for a second; its tier works afterwards all the same."""

    def slowly(*given: Any) -> Any:
        time.sleep(2 * MARGIN_S + 0.2)
        return open_redis(*given)

    monkeypatch.setattr(client_module, "open_redis", slowly)
    with RedisServer(acl=True) as server, client_of(server.port, Counter(), server.passwords["tier"]) as subject:
        said = subject.call(lambda store: store.write([Frame(NAME, b"x" * 100)]), LIMITS.write_s, [None])
        assert said == [scripts.STORED]


def test_after_its_close_a_client_gives_nothing() -> None:
    failures: Counter[str] = Counter()
    with RedisServer() as server, client_of(server.port, failures) as client:
        client.close()
        assert client.call(lambda store: store.read([NAME.entry], 100), LIMITS.read_s, NOTHING) == NOTHING
        client.begin(lambda store: store.drop([NAME], 100))
        client.close()
