"""What became of a deployment's pods at every moment, not only when somebody looked.

A test that says "never" reads the API server's own record of changes from a moment on: nothing is missed between two
looks, and no thread has to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_REPLICA

from hanmaru_testing.operator_world import World, is_ready


@dataclass(frozen=True, slots=True)
class Moment:
    """Counts of replicas after one change of a pod."""

    ready: int
    """All their pods are ready and none is told to end."""
    holding: int
    """Some pod of theirs holds devices, drained ones included."""


class PodHistory:
    """Begins when it is made."""

    def __init__(self, world: World, deployment: str, *, group_size: int = 1) -> None:
        self._api = world.api
        self._path = f"/api/v1/namespaces/{world.namespace}/pods"
        self._deployment = deployment
        self._group_size = group_size
        listed = self._api.get(self._path)
        self._since = listed["metadata"]["resourceVersion"]
        self._first = {pod["metadata"]["uid"]: pod for pod in listed["items"]}

    def versions(self) -> list[dict[str, Any]]:
        """Each version of each replica's pod since the beginning, oldest first; those it began with included."""
        changed = [event["object"] for event in self._api.changes(self._path, self._since)]
        return [pod for pod in [*self._first.values(), *changed] if self._is_replica(pod)]

    def moments(self) -> list[Moment]:
        """The counts at the beginning and after each change."""
        pods = dict(self._first)
        moments = [self._moment(pods)]
        for event in self._api.changes(self._path, self._since):
            pod = event["object"]
            if event["type"] == "DELETED":
                pods.pop(pod["metadata"]["uid"], None)
            else:
                pods[pod["metadata"]["uid"]] = pod
            moments.append(self._moment(pods))
        return moments

    def _moment(self, pods: Mapping[str, dict[str, Any]]) -> Moment:
        groups: dict[str, list[dict[str, Any]]] = {}
        for pod in filter(self._is_replica, pods.values()):
            groups.setdefault(pod["metadata"]["labels"][LABEL_REPLICA], []).append(pod)
        return Moment(
            ready=sum(len(group) == self._group_size and all(map(is_ready, group)) for group in groups.values()),
            holding=sum(any(pod["spec"].get("nodeName") for pod in group) for group in groups.values()),
        )

    def _is_replica(self, pod: dict[str, Any]) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return LABEL_REPLICA in labels and labels.get(LABEL_DEPLOYMENT) == self._deployment
