"""The store put together as facts: pools with their nodes and room, and deployments' replicas.

Reconciles ask it; nothing is decided and nothing written here. Which node belongs to which pool is remembered until a
pool or a node changes, because thousands of deployments ask and nodes change seldom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.names import ReplicaId
from pydantic import ValidationError

from hanmaru_operator import kinds
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.pools import PoolClaim, PoolNodes, assign_nodes
from hanmaru_operator.plan.room import room, use_by_node
from hanmaru_operator.types import (
    LeaseFacts,
    NodeName,
    ObjectKey,
    PodFacts,
    PoolFacts,
    PoolName,
    ReplicaFacts,
    Revision,
)

_LISTENS_TO = frozenset({kinds.ACCELERATOR_POOLS.kind, kinds.NODES.kind})
_OF_ROOM = _LISTENS_TO | {kinds.PODS.kind, kinds.STATEFUL_SETS.kind}


class View:
    """Facts made from one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._specs: dict[PoolName, AcceleratorPoolSpec] | None = None
        self._assigned: dict[PoolName, PoolNodes] = {}
        self.room_version = 0
        """Grows with every change that may leave a pool other room, or other groups in it."""

    def changed(self, change: Change) -> None:
        """The store tells of every change; what is remembered of pools and nodes is forgotten when they differ."""
        kind = change.key.kind
        if kind not in _OF_ROOM:
            return
        if change.old is not None and change.new is not None and change.old.says_the_same(change.new):
            return
        self.room_version += 1
        if kind in _LISTENS_TO:
            self._specs = None

    def pool(self, name: PoolName) -> PoolFacts | None:
        """A pool with its nodes and what is free on each now. None: there is none, or it cannot be read."""
        entry = self._store.get(ObjectKey(kinds.ACCELERATOR_POOLS.kind, "", name))
        specs = self._pools()
        if entry is None or name not in specs:
            return None
        assigned = self._assigned[name]
        used = use_by_node(pod.pod for node in assigned.nodes for pod in self._store.pods_on(node.name))
        return PoolFacts(
            name=name,
            uid=entry.uid,
            generation=entry.generation,
            created_at=entry.created_at,
            spec=specs[name],
            nodes=room(assigned.nodes, used),
            overlapping=assigned.overlapping,
        )

    def pool_spec(self, name: PoolName) -> AcceleratorPoolSpec | None:
        """A pool's spec alone."""
        return self._pools().get(name)

    def pool_nodes(self, name: PoolName) -> PoolNodes:
        """A pool's nodes without their room."""
        self._pools()
        return self._assigned.get(name, PoolNodes())

    def replicas_in(self, pool: PoolName) -> list[ReplicaFacts]:
        """Every deployment's replicas in a pool, those that end included; without their registrations."""
        return [
            self._replica(entry, self._pods(entry.key.namespace, ReplicaId(entry.key.name)), None)
            for entry in self._store.groups_in(pool)
        ]

    def replicas_of(
        self, namespace: str, deployment: str, leases: Mapping[ReplicaId, LeaseFacts] | None
    ) -> tuple[ReplicaFacts, ...]:
        """A deployment's replicas, the oldest first; of some only pods are left. `leases` None: Redis is away."""
        leases = leases or {}
        children = self._store.children(namespace, deployment)
        sets = {ReplicaId(c.key.name): c for c in children if c.key.kind == kinds.STATEFUL_SETS.kind}
        pods: dict[ReplicaId, list[Entry]] = {}
        for child in children:
            if child.key.kind == kinds.PODS.kind and child.pod.replica is not None:
                pods.setdefault(child.pod.replica, []).append(child)
        found = [
            self._replica(entry, _by_rank(pods.get(replica, ())), leases.get(replica))
            for replica, entry in sets.items()
        ]
        left = [
            _left_over(replica, deployment, entries, leases.get(replica))
            for replica, entries in pods.items()
            if replica not in sets
        ]
        return tuple(sorted([*found, *left], key=lambda replica: (replica.created_at, replica.id)))

    def node(self, name: NodeName) -> Entry | None:
        """A node."""
        return self._store.get(ObjectKey(kinds.NODES.kind, "", name))

    def _pools(self) -> Mapping[PoolName, AcceleratorPoolSpec]:
        if self._specs is None:
            specs: dict[PoolName, AcceleratorPoolSpec] = {}
            claims = []
            for entry in self._store.of_kind(kinds.ACCELERATOR_POOLS.kind):
                spec = read_pool(entry)
                if spec is None:
                    continue
                name = PoolName(entry.key.name)
                specs[name] = spec
                claims.append(PoolClaim(name, entry.uid, entry.created_at, spec.nodes.selector_terms))
            nodes = [entry.node for entry in self._store.of_kind(kinds.NODES.kind)]
            self._assigned = assign_nodes(claims, nodes)
            self._specs = specs
        return self._specs

    def _pods(self, namespace: str, replica: ReplicaId) -> tuple[PodFacts, ...]:
        return _by_rank(self._store.pods_of(namespace, replica))

    def _replica(self, entry: Entry, pods: tuple[PodFacts, ...], lease: LeaseFacts | None) -> ReplicaFacts:
        return ReplicaFacts(
            id=ReplicaId(entry.key.name),
            namespace=entry.key.namespace,
            deployment=entry.labels.get(names.LABEL_DEPLOYMENT, ""),
            uid=entry.uid,
            pool=PoolName(entry.labels.get(names.LABEL_POOL, "")),
            revision=Revision(entry.labels.get(names.LABEL_REVISION, "")),
            size=entry.spec.get("replicas", 1),
            created_at=entry.created_at,
            is_terminating=entry.is_terminating,
            pods=pods,
            lease=lease,
        )


def read_pool(entry: Entry) -> AcceleratorPoolSpec | None:
    """A pool's spec; None for one that this operator cannot read (of a newer API)."""
    try:
        return AcceleratorPoolSpec.model_validate_json(entry.spec_json)
    except ValidationError:
        return None


def _by_rank(pods: Iterable[Entry]) -> tuple[PodFacts, ...]:
    return tuple(sorted((pod.pod for pod in pods), key=lambda pod: (pod.ordinal or 0, pod.name)))


def _left_over(replica: ReplicaId, deployment: str, entries: list[Entry], lease: LeaseFacts | None) -> ReplicaFacts:
    """Pods whose StatefulSet is gone: they drain."""
    pods, labels = _by_rank(entries), entries[0].labels
    return ReplicaFacts(
        id=replica,
        namespace=entries[0].key.namespace,
        deployment=deployment,
        uid="",
        pool=PoolName(labels.get(names.LABEL_POOL, "")),
        revision=Revision(labels.get(names.LABEL_REVISION, "")),
        size=len(pods),
        created_at=min(pod.created_at for pod in pods),
        is_terminating=True,
        pods=pods,
        lease=lease,
    )
