"""Applying on the real API server: only differences are written, hands' edits are put right, others' objects stay."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_operator.api_errors import Conflict
from hanmaru_operator.apply import UNWATCHED_BELIEVED_S, Applier, ForeignObject
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import entry_of
from hanmaru_operator.types import ObjectKey

OWNER, OTHER = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


class Bench:
    """An applier, its store, and a count of what it sent."""

    def __init__(self, cluster: Cluster, sent: list[str]) -> None:
        self.cluster = cluster
        self.sent = sent
        self.store = Store()
        self.now = 0.0
        self.applier = Applier(cluster, self.store, lambda: self.now)

    async def see(self, key: ObjectKey) -> None:
        """As the watch would tell."""
        async for page in self.cluster.pages(key.kind, namespace=key.namespace):
            for raw in page.items():
                self.store.put(entry_of(key.kind, raw))


@pytest.fixture
async def bench(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Bench]:
    sent: list[str] = []
    async with open_http(read_connection({"KUBECONFIG": str(control_plane.kubeconfig)})) as http:
        cluster = Cluster(http, own_namespace=namespace, count_request=lambda verb, code: sent.append(f"{verb} {code}"))
        yield Bench(cluster, sent)


def config_map(namespace: str, value: str = "1", owner: str = OWNER, kind: str = "ConfigMap") -> dict[str, Any]:
    reference = {
        # A kind that the garbage collector does not look at: the owner does not exist.
        "apiVersion": "example.com/v1",
        "kind": "Nothing",
        "name": "m",
        "uid": owner,
        "controller": True,
    }
    metadata = {
        "name": "x",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "hanmaru"},
        "ownerReferences": [reference],
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": {"a": value}}


async def test_the_same_again_sends_nothing_and_another_manifest_is_sent(bench: Bench, namespace: str) -> None:
    first = await bench.applier.ensure(config_map(namespace))
    assert bench.sent == ["patch 404", "apply 201"]
    assert bench.store.get(first.key) == first
    assert await bench.applier.ensure(config_map(namespace)) == first
    assert len(bench.sent) == 2
    second = await bench.applier.ensure(config_map(namespace, "2"))
    assert second.data == {"a": "2"}
    assert bench.sent[2:] == ["apply 200"]


async def test_a_hands_edit_is_put_right_once(bench: Bench, namespace: str) -> None:
    made = await bench.applier.ensure(config_map(namespace))
    await bench.cluster.patch(made.key, {"data": {"a": "by hand"}})
    await bench.see(made.key)
    mended = await bench.applier.ensure(config_map(namespace))
    assert mended.data == {"a": "1"}
    bench.sent.clear()
    await bench.applier.ensure(config_map(namespace))
    assert bench.sent == []


async def test_a_restarted_operator_changes_nothing(bench: Bench, namespace: str) -> None:
    made = await bench.applier.ensure(config_map(namespace))
    again = await Applier(bench.cluster, bench.store, lambda: 0).ensure(config_map(namespace))
    assert again.resource_version == made.resource_version


@pytest.mark.parametrize("is_seen", [True, False])
async def test_others_objects_are_left_alone(bench: Bench, namespace: str, is_seen: bool) -> None:
    theirs = config_map(namespace, "theirs", owner=OTHER)
    made = await bench.cluster.create(theirs)
    key = ObjectKey("ConfigMap", namespace, "x")
    if is_seen:
        await bench.see(key)
    with pytest.raises(ForeignObject, match="belongs to somebody else"):
        await bench.applier.ensure(config_map(namespace))
    after = [raw async for page in bench.cluster.pages("ConfigMap", namespace=namespace) for raw in page.items()]
    assert next(raw for raw in after if raw["metadata"]["name"] == "x")["data"] == made["data"]


async def test_several_are_made_together_and_one_that_fails_is_told(bench: Bench, namespace: str) -> None:
    several = [{**config_map(namespace), "metadata": {**config_map(namespace)["metadata"], "name": n}} for n in "abc"]
    await bench.applier.ensure_all(several)
    assert bench.store.counts() == {"ConfigMap": 3}
    bench.sent.clear()
    await bench.applier.ensure_all(several)
    assert bench.sent == []
    await bench.cluster.create(config_map(namespace, "theirs", owner=OTHER))
    with pytest.raises(ForeignObject):
        await bench.applier.ensure_all([config_map(namespace)])


async def test_an_object_without_owner_is_foreign_too(bench: Bench, namespace: str) -> None:
    theirs = config_map(namespace)
    del theirs["metadata"]["ownerReferences"]
    await bench.cluster.create(theirs)
    with pytest.raises(ForeignObject):
        await bench.applier.ensure(config_map(namespace))


async def test_one_made_anew_by_somebody_else_is_not_overwritten(bench: Bench, namespace: str) -> None:
    made = await bench.applier.ensure(config_map(namespace))
    await bench.cluster.delete(made.key)
    await bench.cluster.create(config_map(namespace, "theirs", owner=OTHER))
    with pytest.raises(Conflict):  # the store still shows ours; the next look, after the watch, sees whose it is
        await bench.applier.ensure(config_map(namespace, "2"))


async def test_pruning_takes_that_very_object(bench: Bench, namespace: str) -> None:
    made = await bench.applier.ensure(config_map(namespace))
    await bench.cluster.delete(made.key)
    await bench.cluster.create(config_map(namespace, "anew"))
    await bench.applier.prune([made])
    await bench.see(made.key)
    found = bench.store.get(made.key)
    assert found is not None
    assert found.data == {"a": "anew"}
    await bench.applier.prune([found])
    assert bench.sent[-1] == "delete 200"


async def test_a_pod_that_is_asked_to_end_is_known_to_end_before_the_watch_tells(bench: Bench, namespace: str) -> None:
    spec = {"containers": [{"name": "main", "image": "x"}], "schedulingGates": [{"name": "example.com/gate"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": namespace}, "spec": spec}
    made = entry_of("Pod", await bench.cluster.create(pod))
    bench.store.put(made)
    await bench.applier.prune([made])
    found = bench.store.get(made.key)
    assert found is not None
    assert found.is_terminating


async def test_secrets_that_may_not_be_read_are_written_once_and_held_by_nobody(bench: Bench, namespace: str) -> None:
    secret = config_map(namespace, base64.b64encode(b"key").decode(), kind="Secret")
    entry = await bench.applier.ensure(secret)
    assert entry.data == {}
    assert bench.store.counts() == {}
    await bench.applier.ensure(secret)
    assert bench.sent == ["patch 404", "apply 201"]
    bench.now += UNWATCHED_BELIEVED_S + 1
    await bench.applier.ensure(secret)
    assert bench.sent[2:] == ["patch 200", "apply 200"]
    theirs = config_map(namespace, owner=OTHER, kind="Secret")
    with pytest.raises(ForeignObject):
        await Applier(bench.cluster, bench.store, lambda: 0).ensure(theirs)


@pytest.mark.usefixtures("crds")
async def test_a_status_is_written_when_it_differs(bench: Bench, control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/serving.hanmaru.dev/v1alpha1/namespaces/{namespace}/tenants"
    tenant = {
        "apiVersion": "serving.hanmaru.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "t"},
        "spec": {"credentials": [{"name": "a", "type": "APIKey", "apiKey": {"sha256": "0" * 64}}]},
    }
    control_plane.api.create(path, tenant)
    key = ObjectKey("Tenant", namespace, "t")
    await bench.see(key)
    status = {"observedGeneration": 1, "conditions": []}
    for _ in range(2):
        seen = bench.store.get(key)
        assert seen is not None
        await bench.applier.ensure_status(seen, status)
    assert bench.sent.count("apply_status 200") == 1
