"""Listing: what vanished unheard is noticed, refusals are waited out, and kopf's own listing costs one list more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from hanmaru_operator import kinds, resync
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.objects import Store
from hanmaru_operator.resync import Resync
from hanmaru_operator.types import ObjectKey
from hanmaru_operator.watch import Followed

NODES = Followed(kinds.NODES)
PODS = Followed(kinds.PODS)


class Server:
    """Nodes and pods of an API server that can refuse the next requests."""

    def __init__(self) -> None:
        self.version = 10
        self.nodes: dict[str, int] = {}
        self.refusals: list[httpx2.Response] = []
        self.lists = 0
        self.times: list[float] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.times.append(time.monotonic())
        if self.refusals:
            return self.refusals.pop(0)
        if not request.url.path.endswith("/nodes"):
            return self._page([], "")
        names = sorted(self.nodes)
        start = int(request.url.params.get("continue", "0"))
        if start == 0:
            self.lists += 1
        end = start + 2
        return self._page(names[start:end], str(end) if end < len(names) else "")

    def add(self, *names: str) -> None:
        for name in names:
            self.version += 1
            self.nodes[name] = self.version

    def remove(self, name: str) -> None:
        self.version += 1
        del self.nodes[name]

    def _page(self, names: list[str], more: str) -> httpx2.Response:
        items = [
            {
                "metadata": {
                    "name": name,
                    "uid": f"uid-{name}",
                    "resourceVersion": str(self.nodes[name]),
                    "creationTimestamp": "2026-11-22T19:00:00Z",
                },
                "status": {"allocatable": {"cpu": "4"}},
            }
            for name in names
        ]
        return httpx2.Response(
            200, text=json.dumps({"metadata": {"resourceVersion": str(self.version), "continue": more}, "items": items})
        )


@contextlib.asynccontextmanager
async def listing(
    server: Server, *, interval_s: float = 600, follow: tuple[Followed, ...] = (NODES, PODS)
) -> AsyncIterator[tuple[Resync, Store, list[int]]]:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server.answer), base_url="https://api.test")
    store, rounds = Store(), list[int]()
    made = Resync(
        Cluster(http, own_namespace="own"),
        store,
        follow,
        clock=time.monotonic,
        on_synced=lambda: rounds.append(len(store.of_kind("Node"))),
        interval_s=interval_s,
    )
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(made.run())
        yield made, store, rounds
        task.cancel()


async def until(reached: Callable[[], Any]) -> None:
    while not reached():  # noqa: ASYNC110 - what is awaited tells nobody
        await asyncio.sleep(0.02)


def names(store: Store) -> set[str]:
    return {entry.key.name for entry in store.of_kind("Node")}


async def test_everything_is_listed_before_anybody_hears_of_it() -> None:
    server = Server()
    server.add("a", "b", "c")
    async with listing(server) as (made, store, rounds):
        assert not made.is_synced
        await until(lambda: made.is_synced)
        assert rounds == [3]
        assert names(store) == {"a", "b", "c"}


async def test_each_interval_lists_all_again() -> None:
    server = Server()
    async with listing(server, interval_s=0.2) as (_, _, rounds):
        await until(lambda: len(rounds) >= 3)
    assert server.lists >= 3


async def test_what_vanished_unheard_is_noticed_after_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync, "QUIET_S", 0.1)
    server = Server()
    server.add("a", "b")
    async with listing(server) as (made, store, _):
        await until(lambda: made.is_synced)
        server.remove("a")
        for _ in range(20):  # a burst is one list
            made.uncertain("Node")
        await until(lambda: names(store) == {"b"})
        assert server.lists == 2


async def test_kopfs_own_listing_at_the_start_does_not_put_ours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync, "QUIET_S", 0.3)
    server = Server()
    server.add("a")
    async with listing(server) as (made, store, _):
        begun = time.monotonic()
        while not made.is_synced:
            made.uncertain("Node")
            await asyncio.sleep(0)
        assert time.monotonic() - begun < 0.25
        server.remove("a")
        await until(lambda: names(store) == set())  # but it is done again afterwards


async def test_asked_to_wait_it_waits() -> None:
    server = Server()
    server.refusals = [httpx2.Response(429, headers={"Retry-After": "1"}, json={"message": "slow down"})]
    async with listing(server, follow=(NODES,)) as (made, _, _):
        await until(lambda: made.is_synced)
    assert server.times[1] - server.times[0] >= 1.0


async def test_an_expired_list_begins_anew() -> None:
    server = Server()
    server.add("a", "b", "c")
    answer, pages = server.answer, 0

    def expire_once(request: httpx2.Request) -> httpx2.Response:
        nonlocal pages
        if "continue" in request.url.params:
            pages += 1
            if pages == 1:
                return httpx2.Response(410, json={"message": "the provided continue parameter is too old"})
        return answer(request)

    server.answer = expire_once  # type: ignore[method-assign]
    async with listing(server, follow=(NODES,)) as (made, store, _):
        await until(lambda: made.is_synced)
        assert names(store) == {"a", "b", "c"}
    assert server.lists == 2


async def test_missing_kinds_are_named_until_they_are_served() -> None:
    server = Server()
    server.refusals = [httpx2.Response(404, json={"message": "not found"}) for _ in range(2)]
    async with listing(server, follow=(NODES,)) as (made, _, _):
        await until(lambda: made.missing_kinds)
        assert made.missing_kinds == ["Node"]
        await until(lambda: made.is_synced)
        assert made.missing_kinds == []


async def test_one_unreadable_object_hides_no_other() -> None:
    server = Server()
    server.add("a", "b")
    page = server._page(["a"], "")
    broken = page.json()
    broken["items"].insert(0, {"metadata": {"name": "broken"}})
    server.refusals = [httpx2.Response(200, json=broken)]
    async with listing(server, follow=(NODES,)) as (made, store, _):
        await until(lambda: made.is_synced)
        assert store.get(ObjectKey("Node", "", "a")) is not None
