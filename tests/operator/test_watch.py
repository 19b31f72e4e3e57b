"""The watch and the resync together keep the store as the API server is, on the real one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import time
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.resync import Resync
from hanmaru_operator.types import ObjectKey
from hanmaru_operator.watch import Watch, followed

DEADLINE_S = 40.0


@dataclass
class Mirror:
    """A store that follows a real API server."""

    store: Store
    resync: Resync
    cluster: Cluster
    changes: list[Change]

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not reached():  # noqa: ASYNC110 - what is awaited tells nobody
                await asyncio.sleep(0.05)


class _Feed:
    def __init__(self, store: Store, resync: Resync) -> None:
        self._store = store
        self._resync = resync

    def seen(self, entry: Entry) -> None:
        self._store.put(entry)

    def vanished(self, entry: Entry) -> None:
        self._store.remove(entry.key, entry.uid, entry.resource_version)

    def uncertain(self, kind: str) -> None:
        self._resync.uncertain(kind)


@contextlib.asynccontextmanager
async def mirror(plane: ControlPlane, tenant_namespaces: tuple[str, ...] = ()) -> AsyncIterator[Mirror]:
    connection = read_connection({"KUBECONFIG": str(plane.kubeconfig)})
    changes: list[Change] = []
    store = Store(changes.append)
    everything = followed(tenant_namespaces)
    async with open_http(connection) as http, asyncio.TaskGroup() as group:
        cluster = Cluster(http, own_namespace="default", tenant_namespaces=tenant_namespaces)
        resync = Resync(cluster, store, everything, clock=time.monotonic, on_synced=lambda: None)
        feed = _Feed(store, resync)
        await resync.await_kinds()
        tasks = [
            group.create_task(Watch(str(bool(part[0].namespaces)), part, connection, feed).run())
            for part in (
                [one for one in everything if not one.namespaces],
                [one for one in everything if one.namespaces],
            )
            if part
        ]
        tasks.append(group.create_task(resync.run()))
        made = Mirror(store, resync, cluster, changes)
        await made.until(lambda: resync.is_synced)
        yield made
        for task in tasks:
            task.cancel()
    # A connection whose task is cancelled while it is made is left to the garbage collector (anyio 4).
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def config_map(namespace: str, name: str = "made") -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "hanmaru"}},
        "data": {"a": "1"},
    }


@pytest.mark.usefixtures("crds")
async def test_changes_arrive_and_others_objects_do_not(control_plane: ControlPlane, namespace: str) -> None:
    key = ObjectKey("ConfigMap", namespace, "made")
    async with mirror(control_plane) as seen:
        await seen.cluster.apply(config_map(namespace))
        foreign = config_map(namespace, "foreign")
        foreign["metadata"] = {"name": "foreign", "namespace": namespace}
        await seen.cluster.apply(foreign)
        await seen.until(lambda: seen.store.get(key) is not None)
        first = seen.store.get(key)
        await seen.cluster.patch(key, {"data": {"a": "2"}})
        await seen.until(lambda: (e := seen.store.get(key)) is not None and e.data == {"a": "2"})
        second = seen.store.get(key)
        assert first is not None
        assert second is not None
        assert second.digest != first.digest
        await seen.cluster.delete(key)
        await seen.until(lambda: seen.store.get(key) is None)
        assert seen.store.get(ObjectKey("ConfigMap", namespace, "foreign")) is None


@pytest.mark.usefixtures("crds")
async def test_what_was_deleted_while_nobody_listened_is_noticed(control_plane: ControlPlane, namespace: str) -> None:
    key = ObjectKey("ConfigMap", namespace, "made")
    async with mirror(control_plane) as seen:
        await seen.cluster.apply(config_map(namespace))
        await seen.until(lambda: seen.store.get(key) is not None)
        await asyncio.to_thread(control_plane.stop_apiserver)
        await asyncio.to_thread(control_plane.start_apiserver)
        await asyncio.to_thread(control_plane.restart_controllers)  # the next test waits for them
        await asyncio.to_thread(control_plane.api.delete, f"/api/v1/namespaces/{namespace}/configmaps/made")
        await seen.until(lambda: seen.store.get(key) is None)


@pytest.mark.usefixtures("crds")
async def test_secrets_are_known_from_tenants_namespaces_only(control_plane: ControlPlane, namespace: str) -> None:
    secret = {"metadata": {"name": "key"}, "data": {"key": base64.b64encode(b"hmk_x").decode()}}
    other = f"{namespace}-other"
    control_plane.create_namespace(other)
    for where in (namespace, other):
        control_plane.api.create(f"/api/v1/namespaces/{where}/secrets", secret)
    async with mirror(control_plane, (namespace,)) as seen:
        key = ObjectKey("Secret", namespace, "key")
        await seen.until(lambda: seen.store.get(key) is not None)
        entry = seen.store.get(key)
        assert entry is not None
        assert "aG1" not in repr(entry)
        assert {e.key.namespace for e in seen.store.of_kind("Secret")} == {namespace}
        control_plane.api.delete(f"/api/v1/namespaces/{namespace}/secrets/key")
        await seen.until(lambda: seen.store.get(key) is None)
    control_plane.api.delete(f"/api/v1/namespaces/{other}")
