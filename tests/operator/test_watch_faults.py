"""kopf as a watch engine when things go wrong, and what it must never do: an API server that is told what to say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hanmaru_operator import kinds, watch
from hanmaru_operator.observe import Entry
from hanmaru_operator.watch import OURS_ONLY, Followed, Watch
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

DEADLINE_S = 20.0
END = None
"""Ends a watch's stream, as the server does after half an hour."""


class Told:
    """The sink, remembering."""

    def __init__(self) -> None:
        self.seen_names: list[str] = []
        self.vanished_names: list[str] = []
        self.uncertain_kinds: list[str] = []

    def seen(self, entry: Entry) -> None:
        self.seen_names.append(entry.key.name)

    def vanished(self, entry: Entry) -> None:
        self.vanished_names.append(entry.key.name)

    def uncertain(self, kind: str) -> None:
        self.uncertain_kinds.append(kind)


def config_map(name: str, version: int = 5, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-22T19:00:00Z",
            **metadata,
        },
        "data": {},
    }


class ApiServer:
    """ConfigMaps alone. `streams` are what the next watches say; after the last one they stay silent."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.streams: list[list[dict[str, Any] | None]] = []
        self.requests: list[web.Request] = []
        self.token: str | None = None
        self.refuse_watches_with: int | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "code": 401, "message": "Unauthorized"}, status=401)
        match request.path:
            case "/api":
                return web.json_response({"versions": ["v1"]})
            case "/apis":
                return web.json_response({"groups": []})
            case "/api/v1":
                verbs = ["list", "watch", "get", "patch"]
                names = [("configmaps", "ConfigMap", True), ("namespaces", "Namespace", False)]
                listed = [
                    {"name": n, "kind": k, "singularName": "", "namespaced": is_in, "verbs": verbs}
                    for n, k, is_in in names
                ]
                return web.json_response({"resources": listed})
        if "watch" in request.query:
            return await self._watch(request)
        body = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}
        return web.json_response({**body, "items": self.objects})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_watches_with is not None:
            status, self.refuse_watches_with = self.refuse_watches_with, None
            return web.json_response({"kind": "Status", "code": status, "message": "no"}, status=status)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.streams.pop(0) if self.streams else []:
            if event is END:
                return response
            await response.write(json.dumps(event).encode() + b"\n")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE_S * 2)
        return response

    @property
    def watches(self) -> list[web.Request]:
        return [request for request in self.requests if "watch" in request.query]


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@contextlib.asynccontextmanager
async def watching(server: ApiServer, user: User | None = None) -> AsyncIterator[tuple[Told, Callable[..., Any]]]:
    connection = KubeConfig.from_one(cluster=Cluster(server=server.url), user=user or User(token="t")).get()
    assert connection is not None
    told = Told()
    task = asyncio.create_task(Watch("test", [Followed(kinds.CONFIG_MAPS, OURS_ONLY)], connection, told).run())

    async def until(reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not reached():  # noqa: ASYNC110 - what is awaited tells nobody
                await asyncio.sleep(0.02)

    yield told, until
    task.cancel()
    await asyncio.wait([task])


async def test_events_become_entries_and_only_ours_are_asked_for(server: ApiServer) -> None:
    server.objects = [config_map("listed")]
    gone = config_map("listed", 7)
    server.streams = [[{"type": "ADDED", "object": config_map("new", 6)}, {"type": "DELETED", "object": gone}]]
    async with watching(server) as (told, until):
        await until(lambda: told.vanished_names)
        assert set(told.seen_names) == {"listed", "new"}
        assert told.uncertain_kinds == ["ConfigMap"]  # by what kopf listed
    assert {request.query["labelSelector"] for request in server.watches} == {OURS_ONLY}


async def test_after_an_expired_watch_the_kind_is_uncertain(server: ApiServer) -> None:
    server.objects = [config_map("there")]
    server.streams = [[{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}]]
    async with watching(server) as (told, until):
        await until(lambda: len(told.uncertain_kinds) >= 2)
        assert told.seen_names.count("there") >= 2


async def test_a_list_of_nothing_is_a_sign_too(server: ApiServer) -> None:
    """Nobody is left to speak for the last object of a kind that vanished unheard."""
    server.streams = [[{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}]]
    async with watching(server) as (told, until):
        await until(lambda: len(server.watches) >= 2)
        assert told.seen_names == []
        assert told.uncertain_kinds == ["ConfigMap"] * 2


async def test_an_error_that_ends_kopf_starts_another(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_RESTART_S", 0.1)
    server.streams = [
        [{"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd"}}],
        [{"type": "ADDED", "object": config_map("after", 8)}],
    ]
    async with watching(server) as (told, until):
        await until(lambda: "after" in told.seen_names)
        # The first list, the end (something may have vanished meanwhile), the second list.
        assert told.uncertain_kinds == ["ConfigMap"] * 3


@pytest.mark.parametrize("status", [403, 429, 500])
async def test_a_watch_that_is_refused_is_asked_for_again(server: ApiServer, status: int) -> None:
    server.refuse_watches_with = status
    server.streams = [[{"type": "ADDED", "object": config_map("after", 8)}]]
    async with watching(server) as (told, until):
        await until(lambda: "after" in told.seen_names)


async def test_a_stream_that_ends_goes_on_where_it_was(server: ApiServer) -> None:
    server.streams = [
        [{"type": "ADDED", "object": config_map("first", 11)}, END],
        [{"type": "ADDED", "object": config_map("second", 12)}],
    ]
    async with watching(server) as (told, until):
        await until(lambda: "second" in told.seen_names)
    assert [request.query["resourceVersion"] for request in server.watches[:2]] == ["9", "11"]
    assert told.uncertain_kinds == ["ConfigMap"]  # by the list at the start alone


async def test_nothing_is_ever_written_not_even_to_objects_of_another_kopf(server: ApiServer) -> None:
    foreign = config_map(
        "foreign",
        finalizers=["kopf.zalando.org/KopfFinalizerMarker"],
        annotations={"kopf.zalando.org/last-handled-configuration": "{}"},
    )
    ending = config_map(
        "ending", deletionTimestamp="2026-11-22T19:00:00Z", finalizers=foreign["metadata"]["finalizers"]
    )
    server.objects = [foreign, ending]
    changed = {**foreign, "data": {"a": "1"}, "metadata": {**foreign["metadata"], "resourceVersion": "11"}}
    server.streams = [[{"type": "MODIFIED", "object": changed}, {"type": "ADDED", "object": config_map("last", 12)}]]
    async with watching(server) as (told, until):
        await until(lambda: "last" in told.seen_names)
        await asyncio.sleep(0.3)
    assert {request.method for request in server.requests} == {"GET"}


async def test_a_rotated_token_is_used(server: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    server.token = "old"
    server.streams = [[{"type": "ADDED", "object": config_map("before", 11)}]]
    async with watching(server, User(token="old", token_file=str(token))) as (told, until):
        await until(lambda: "before" in told.seen_names)
        token.write_text("new")
        server.token = "new"
        server.streams = [[{"type": "ADDED", "object": config_map("after", 12)}]]
        for request in server.watches:
            if request.transport is not None:
                request.transport.close()
        await until(lambda: "after" in told.seen_names)


async def test_an_object_that_cannot_be_read_stops_nobody(server: ApiServer) -> None:
    broken = {"kind": "ConfigMap", "metadata": {"name": "broken", "uid": "u", "resourceVersion": "11"}}
    server.streams = [[{"type": "ADDED", "object": broken}, {"type": "ADDED", "object": config_map("fine", 12)}]]
    async with watching(server) as (told, until):
        await until(lambda: told.seen_names == ["fine"])
