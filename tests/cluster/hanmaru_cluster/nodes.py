"""Nodes that exist only as API objects, with the labels and devices a test wants; `kwok` keeps them alive."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from hanmaru_cluster.api import ApiClient
from hanmaru_cluster.kwok import HEARTBEAT

OWNER = "cluster.hanmaru.test/owner"
"""Label that tells one test's nodes from another's."""
_CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"}


class Nodes:
    """The nodes of one test; a context manager that removes them. `selector` selects them, and no others."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._names: list[str] = []
        self._owner = uuid.uuid4().hex[:8]

    @property
    def selector(self) -> dict[str, str]:
        """A node selector that matches all nodes of this test."""
        return {OWNER: self._owner}

    def add(
        self,
        count: int = 1,
        *,
        labels: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
        allocatable: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
    ) -> list[str]:
        """Create nodes and return their names; they are Ready within a second or two.

        `capacity` adds to (or replaces) 64 CPUs, 512 GiB and 110 pods: `{"nvidia.com/gpu": "8"}`. `allocatable` says
        where less of it can be allocated than there is.
        """
        added = [f"node-{self._owner}-{len(self._names) + index}" for index in range(count)]
        for name in added:
            manifest = _manifest(
                name,
                labels={"kubernetes.io/hostname": name, HEARTBEAT: "on", **self.selector, **(labels or {})},
                capacity={**_CAPACITY, **(capacity or {})},
                allocatable={**_CAPACITY, **(capacity or {}), **(allocatable or {})},
                taints=taints,
            )
            self._api.create("/api/v1/nodes", manifest)
            self._names.append(name)
        return added

    def cut(self, name: str) -> None:
        """Stop the node's heartbeats and freeze its pods; it is tainted when the heartbeat timeout is over."""
        self._label(name, HEARTBEAT, None)

    def restore(self, name: str) -> None:
        """Let a node that was cut come back."""
        self._label(name, HEARTBEAT, "on")

    def remove(self, name: str) -> None:
        """Delete the Node object. Its pods stay until the controller manager collects them, 40 to 60 seconds later."""
        self._api.delete(f"/api/v1/nodes/{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.delete(f"/api/v1/nodes?labelSelector={OWNER}={self._owner}")

    def _label(self, name: str, key: str, value: str | None) -> None:
        self._api.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {key: value}}})


def _manifest(
    name: str,
    *,
    labels: Mapping[str, str],
    capacity: Mapping[str, str],
    allocatable: Mapping[str, str],
    taints: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"taints": [dict(taint) for taint in taints]},
        # A kubelet registers with its status too, so the API server takes it with the creation.
        "status": {"capacity": dict(capacity), "allocatable": dict(allocatable)},
    }
