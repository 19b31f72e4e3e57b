"""The operator's memory of the cluster: the newest entry of every object it watches, and the ways to find them.

The watch, the resync and `apply` write it, `reconcile` reads it; all in one event loop. It says what changed to whoever
was given as `notify`, and decides nothing. An older version never replaces a newer one, whoever brings it, and what was
deleted does not come back by a late answer to a request. (`store` is another thing: Redis.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_POOL, ReplicaId

from hanmaru_operator.observe import Entry
from hanmaru_operator.types import NodeName, ObjectKey, PoolName

_REMEMBERED_DELETIONS = 20_000
"""A late answer comes within seconds; this is what a big namespace's deletion makes."""


@dataclass(frozen=True, slots=True)
class Change:
    """An object's entry before and after; None: it was, or is, not there."""

    old: Entry | None
    new: Entry | None

    @property
    def key(self) -> ObjectKey:
        """Of the object."""
        entry = self.new or self.old
        assert entry is not None
        return entry.key


def _ignore(_: Change) -> None:
    """Nobody listens."""


class Store:
    """Entries of all watched objects. What it gives out is a list of its own: writing meanwhile does no harm."""

    def __init__(self, notify: Callable[[Change], None] = _ignore) -> None:
        """`notify` is called at once after each change, and must not write to the store."""
        self._notify = notify
        self._by_kind: dict[str, dict[ObjectKey, Entry]] = {}
        self._places: dict[Hashable, dict[ObjectKey, Entry]] = {}
        self._deleted: OrderedDict[str, int] = OrderedDict()

    def get(self, key: ObjectKey) -> Entry | None:
        """The newest entry of an object."""
        return self._by_kind.get(key.kind, {}).get(key)

    def of_kind(self, kind: str) -> list[Entry]:
        """All objects of a kind."""
        return list(self._by_kind.get(kind, {}).values())

    def children(self, namespace: str, deployment: str) -> list[Entry]:
        """Everything labelled as of this deployment, pods included."""
        return self._at(("child", namespace, deployment))

    def pods_on(self, node: NodeName) -> list[Entry]:
        """Pods bound to a node, and ours that are not bound yet and planned there."""
        return self._at(("node", node))

    def pods_of(self, namespace: str, replica: ReplicaId) -> list[Entry]:
        """Pods of one of our groups, in no order."""
        return self._at(("replica", namespace, replica))

    def groups_in(self, pool: PoolName) -> list[Entry]:
        """StatefulSets of the replicas in a pool, of all deployments."""
        return self._at(("pool", pool))

    def counts(self) -> dict[str, int]:
        """Objects by kind."""
        return {kind: len(entries) for kind, entries in self._by_kind.items()}

    def put(self, entry: Entry) -> bool:
        """Take in an object as somebody saw it; False when something as new or newer is known."""
        old = self.get(entry.key)
        if old is not None and old.resource_version >= entry.resource_version:
            return False
        if self._deleted.get(entry.uid, -1) >= entry.resource_version:
            return False
        if old is not None:
            self._unlink(old)
        self._link(entry)
        self._notify(Change(old, entry))
        return True

    def remove(self, key: ObjectKey, uid: str, resource_version: int) -> bool:
        """An object was deleted, or no longer matches what we watch, at this version. False: nothing new."""
        self._deleted[uid] = max(resource_version, self._deleted.pop(uid, 0))
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        old = self.get(key)
        if old is None or old.uid != uid or old.resource_version > resource_version:
            return False
        self._unlink(old)
        self._notify(Change(old, None))
        return True

    def replace(self, kind: str, entries: Iterable[Entry], resource_version: int, *, namespace: str = "") -> None:
        """Take in a whole list of a kind (in one namespace) as of this version; what it lacks is gone.

        What came after the list was made is kept.
        """
        listed = set()
        for entry in entries:
            self.put(entry)
            listed.add(entry.uid)
        for old in self.of_kind(kind):
            is_meant = not namespace or old.key.namespace == namespace
            if is_meant and old.uid not in listed and old.resource_version <= resource_version:
                self.remove(old.key, old.uid, resource_version)

    def _at(self, place: Hashable) -> list[Entry]:
        return list(self._places.get(place, {}).values())

    def _link(self, entry: Entry) -> None:
        self._by_kind.setdefault(entry.key.kind, {})[entry.key] = entry
        for place in _places(entry):
            self._places.setdefault(place, {})[entry.key] = entry

    def _unlink(self, entry: Entry) -> None:
        del self._by_kind[entry.key.kind][entry.key]
        for place in _places(entry):
            there = self._places[place]
            del there[entry.key]
            if not there:
                del self._places[place]


def _places(entry: Entry) -> Iterator[Hashable]:
    """Where it can be found, apart from its kind."""
    deployment = entry.labels.get(LABEL_DEPLOYMENT)
    if deployment:
        yield "child", entry.key.namespace, deployment
    if entry.key.kind == "StatefulSet" and LABEL_POOL in entry.labels:
        yield "pool", entry.labels[LABEL_POOL]
    if entry.key.kind == "Pod":
        node = entry.pod.node or entry.pod.planned_node
        if node:
            yield "node", node
        if entry.pod.replica:
            yield "replica", entry.key.namespace, entry.pod.replica
