"""Requests to the API server: what it refuses becomes one small tree, and what `kinds` does not list is never sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator import cluster as module
from hanmaru_operator.api_errors import (
    ClusterError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    NotLeader,
    TooMany,
    Unreachable,
    VerbNotListed,
)
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.observe import entry_of
from hanmaru_operator.types import ObjectKey

Answer = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
async def cluster(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """Of the real API server, as its administrator."""
    async with open_http(read_connection({"KUBECONFIG": str(control_plane.kubeconfig)})) as http:
        yield Cluster(http, own_namespace=namespace)


def scripted(answer: Answer, **more: Any) -> Cluster:
    """Of an API server that says what a real one says only under load."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="https://api.test")
    return Cluster(http, own_namespace="own", **more)


def config_map(namespace: str, **data: str) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "hanmaru"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def test_applying_makes_an_object_and_takes_fields_back_from_others(cluster: Cluster, namespace: str) -> None:
    key = ObjectKey("ConfigMap", namespace, "x")
    first = await cluster.apply(config_map(namespace, a="1"))
    await cluster.patch(key, {"data": {"a": "by hand", "b": "2"}})
    second = await cluster.apply(config_map(namespace, a="1"))
    assert second["data"] == {"a": "1", "b": "2"}
    again = await cluster.apply(config_map(namespace, a="1"))
    assert again["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert entry_of("ConfigMap", first).uid == entry_of("ConfigMap", again).uid


async def test_a_uid_guards_every_way_of_writing(cluster: Cluster, namespace: str) -> None:
    key, other = ObjectKey("ConfigMap", namespace, "x"), "00000000-0000-0000-0000-000000000000"
    with pytest.raises(Conflict):
        await cluster.apply(config_map(namespace), uid=other)  # there is none: it is not made anew
    uid = (await cluster.apply(config_map(namespace)))["metadata"]["uid"]
    for attempt in (
        cluster.apply(config_map(namespace, a="1"), uid=other),
        cluster.patch(key, {"data": {"a": "1"}}, uid=other),
        cluster.delete(key, uid=other),
    ):
        with pytest.raises(Conflict):
            await attempt
    with pytest.raises(Invalid):
        await cluster.patch(key, [{"op": "add", "path": "/data", "value": {"a": "1"}}], uid=other)
    await cluster.patch(key, [{"op": "add", "path": "/data", "value": {"a": "1"}}], uid=uid)
    await cluster.delete(key, uid=uid)
    await cluster.delete(key, uid=uid)  # gone already is as good


async def test_a_version_guards_a_patch_and_an_update(cluster: Cluster, namespace: str) -> None:
    key = ObjectKey("ConfigMap", namespace, "x")
    read = await cluster.apply(config_map(namespace))
    version = int(read["metadata"]["resourceVersion"])
    await cluster.patch(key, {"data": {"a": "1"}}, resource_version=version)
    with pytest.raises(Conflict):
        await cluster.patch(key, {"data": {"a": "2"}}, resource_version=version)


async def test_refusals_keep_the_servers_words(cluster: Cluster, namespace: str) -> None:
    await cluster.create(config_map(namespace))
    with pytest.raises(Conflict, match="already exists"):
        await cluster.create(config_map(namespace))
    with pytest.raises(Invalid, match="not declared"):
        await cluster.apply({**config_map(namespace), "dta": {}})
    bad = config_map(namespace)
    bad["metadata"]["name"] = "Not A Name"
    with pytest.raises(Invalid, match="lowercase"):
        await cluster.create(bad)
    with pytest.raises(NotFound):
        await cluster.get(ObjectKey("Lease", namespace, "none"))


async def test_lists_come_in_pages_of_one_version(cluster: Cluster, namespace: str) -> None:
    for index in range(5):
        made = config_map(namespace)
        made["metadata"]["name"] = f"x{index}"
        await cluster.create(made)
    labels = "app.kubernetes.io/managed-by=hanmaru"
    pages = [page async for page in cluster.pages("ConfigMap", namespace=namespace, labels=labels, page_objects=2)]
    assert [len(page.raw_items) for page in pages] == [2, 2, 1]
    assert len({page.resource_version for page in pages}) == 1
    assert [item["metadata"]["name"] for page in pages for item in page.items()] == [f"x{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"message": "m"}, Invalid),
        (401, {"message": "m"}, Unreachable),
        (403, {"message": "m"}, Forbidden),
        (404, {"message": "m"}, NotFound),
        (409, {"message": "m"}, Conflict),
        (410, {"message": "m"}, Gone),
        (422, {"message": "m"}, Invalid),
        (429, {"message": "m"}, TooMany),
        (500, {"message": "m"}, Unreachable),
        (504, {"message": "m"}, Unreachable),
    ],
)
async def test_every_refusal_has_one_meaning(status: int, body: dict[str, str], expected: type[ClusterError]) -> None:
    server = scripted(lambda _: httpx2.Response(status, json=body))
    with pytest.raises(expected, match="m"):
        await server.get(ObjectKey("Lease", "own", "b"))


@pytest.mark.parametrize(
    ("response", "seconds"),
    [
        (httpx2.Response(429, headers={"Retry-After": "7"}, json={}), 7.0),
        (httpx2.Response(429, json={"details": {"retryAfterSeconds": 3}}), 3.0),
        (httpx2.Response(503, headers={"Retry-After": "1"}, text="overloaded"), 1.0),
        (httpx2.Response(429, text="slow down"), None),
    ],
)
async def test_how_long_to_wait_is_told(response: httpx2.Response, seconds: float | None) -> None:
    with pytest.raises(HanmaruError) as caught:
        await scripted(lambda _: response).get(ObjectKey("Lease", "own", "b"))
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize(
    "attempt",
    [
        lambda c: c.get(ObjectKey("Secret", "somewhere", "s")),
        lambda c: c.get(ObjectKey("Lease", "somewhere", "l")),
        lambda c: c.delete(ObjectKey("ModelDeployment", "a", "m")),
        lambda c: c.patch(ObjectKey("Tenant", "a", "t"), {}),
        lambda c: c.apply_status(ObjectKey("Pod", "a", "p"), {}),
        lambda c: anext(c.pages("Secret")),
    ],
)
async def test_what_is_not_listed_is_never_sent(attempt: Callable[[Cluster], Any]) -> None:
    def never(_: httpx2.Request) -> httpx2.Response:
        raise AssertionError("sent")

    with pytest.raises(VerbNotListed, match=r"kinds\.py"):
        await attempt(scripted(never, tenant_namespaces=["tenants"]))


async def test_secrets_are_listed_in_tenants_namespaces() -> None:
    answer = {"metadata": {"resourceVersion": "1"}, "items": []}
    server = scripted(lambda _: httpx2.Response(200, json=answer), tenant_namespaces=["tenants"])
    assert (await anext(server.pages("Secret", namespace="tenants"))).raw_items == []


async def test_nothing_is_written_without_the_lease_and_reading_goes_on() -> None:
    left_s = 0.0
    server = scripted(lambda _: httpx2.Response(200, json={}), time_left_s=lambda: left_s)
    with pytest.raises(NotLeader):
        await server.apply(config_map("a"))
    await server.get(ObjectKey("Lease", "own", "b"))
    left_s = 1.0
    await server.apply(config_map("a"))


async def test_a_write_ends_when_the_lease_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(30)
        raise AssertionError

    server = scripted(hang, time_left_s=lambda: 0.2)  # type: ignore[arg-type]
    begun = time.monotonic()
    with pytest.raises(Unreachable):
        await server.apply(config_map("a"))
    assert time.monotonic() - begun < 5
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.2)
    with pytest.raises(Unreachable):
        await server.get(ObjectKey("Lease", "own", "b"))


async def test_requests_are_counted_by_verb_and_code() -> None:
    counted: list[tuple[str, int]] = []

    def refuse(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no")

    key = ObjectKey("Lease", "own", "b")
    await scripted(lambda _: httpx2.Response(200, json={}), count_request=lambda v, c: counted.append((v, c))).get(key)
    with pytest.raises(Unreachable):
        await scripted(refuse, count_request=lambda v, c: counted.append((v, c))).get(key)
    assert counted == [("get", 200), ("get", 0)]
