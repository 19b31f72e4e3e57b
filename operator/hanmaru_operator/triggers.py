"""Which objects to reconcile when one has changed: looked up, never guessed, and nothing when nothing we keep differs.

`main` feeds it every change of the store and the answers to the work queue. A node's heartbeat, a pod's new address
and our own writes of a status ask for nothing. What an object was counts as well as what it is, so that a label taken
away is noticed by whom it belonged to. Pools decide themselves which waiting deployments may go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec, NodeSelectorTerm
from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_POOL
from pydantic import ValidationError

from hanmaru_operator import kinds
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.pools import Labels, is_met
from hanmaru_operator.types import NodeName, ObjectKey

DEPLOYMENT = kinds.MODEL_DEPLOYMENTS.kind
POOL = kinds.ACCELERATOR_POOLS.kind
TENANTS_KEY = ObjectKey(kinds.TENANTS.kind, "", "")
"""All tenants and routes together: what they may do is one question."""


@dataclass(frozen=True, slots=True)
class Call:
    """A key to reconcile; `is_direct`: somebody waits for it, else it is a matter of tidiness."""

    key: ObjectKey
    is_direct: bool = True


@dataclass(frozen=True, slots=True)
class _Uses:
    """What of a deployment's spec concerns others."""

    route: str
    pools: tuple[str, ...]
    for_others: str
    """The spec without what concerns the deployment alone."""


class Triggers:
    """Told every change in order; keeps who uses which pool and route."""

    def __init__(self, store: Store) -> None:
        """`store` holds what is told already."""
        self._store = store
        self._uses: dict[ObjectKey, _Uses] = {}
        self._by_route: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._by_pool: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._terms: dict[str, tuple[NodeSelectorTerm, ...]] = {}
        self._pools_of: dict[ObjectKey, tuple[Labels, frozenset[ObjectKey]]] = {}

    def calls(self, change: Change) -> set[Call]:
        """What to reconcile because of it."""
        if change.old is not None and change.new is not None and change.old.says_the_same(change.new):
            return set()
        match change.key.kind:
            case kinds.MODEL_DEPLOYMENTS.kind:
                return set(self._deployment_changed(change))
            case kinds.ACCELERATOR_POOLS.kind:
                return set(self._pool_changed(change))
            case kinds.TENANTS.kind:
                return {Call(TENANTS_KEY)}
            case kinds.NODES.kind:
                return set(self._node_changed(change))
            case kinds.NAMESPACES.kind:
                return {Call(TENANTS_KEY), *self._deployments_in(change.key.name)}
            case kinds.PODS.kind:
                return set(self._pod_changed(change))
            case kinds.SECRETS.kind:
                return {Call(TENANTS_KEY), *_owners(change)}
            case _:
                return set(_owners(change))

    def users_of(self, pool: str) -> set[ObjectKey]:
        """Deployments that list the pool."""
        return set(self._by_pool.get(pool, ()))

    def pools_of(self, node: Entry) -> frozenset[ObjectKey]:
        """Pools whose terms select the node, all that do. Remembered by node: pods ask, often and about few labels."""
        labels = node.node.labels
        last = self._pools_of.get(node.key)
        if last is not None and last[0] == labels:
            return last[1]
        pools = frozenset(ObjectKey(POOL, "", name) for name, terms in self._terms.items() if _selects(terms, labels))
        self._pools_of[node.key] = labels, pools
        return pools

    def _deployment_changed(self, change: Change) -> Iterator[Call]:
        key = change.key
        old, new = self._uses.pop(key, None), _uses(change.new)
        if new is not None:
            self._uses[key] = new
        _move(self._by_route, key, {old.route} if old else (), {new.route} if new else ())
        _move(self._by_pool, key, old.pools if old else (), new.pools if new else ())
        yield Call(key)
        if old != new or _is_ending(change):
            yield Call(TENANTS_KEY)
            routes = {uses.route for uses in (old, new) if uses is not None}
            yield from (Call(sharer) for route in routes for sharer in self._by_route.get(route, ()))

    def _pool_changed(self, change: Change) -> Iterator[Call]:
        name = change.key.name
        old, new = self._terms.pop(name, None), _terms(change.new)
        if new is not None:
            self._terms[name] = new
        yield Call(change.key)
        yield from (Call(user) for user in self.users_of(name))
        if old != new:  # nodes may have come from other pools, or go to them
            self._pools_of.clear()
            yield from (Call(ObjectKey(POOL, "", other), is_direct=False) for other in self._terms if other != name)

    def _node_changed(self, change: Change) -> Iterator[Call]:
        for node in (change.old, change.new):
            if node is not None:
                yield from map(Call, self.pools_of(node))
        if change.new is None:
            self._pools_of.pop(change.key, None)
        for pod in self._store.pods_on(NodeName(change.key.name)):
            yield from _owner(pod)

    def _pod_changed(self, change: Change) -> Iterator[Call]:
        yield from _owners(change)
        for pod in (change.old, change.new):
            if pod is None:
                continue
            if LABEL_POOL in pod.labels:
                yield Call(ObjectKey(POOL, "", pod.labels[LABEL_POOL]))
            node = self._store.get(ObjectKey(kinds.NODES.kind, "", pod.pod.node)) if pod.pod.node else None
            if node is not None:
                yield from map(Call, self.pools_of(node))

    def _deployments_in(self, namespace: str) -> Iterator[Call]:
        return (Call(key) for key in self._uses if key.namespace == namespace)


def _selects(terms: Iterable[NodeSelectorTerm], labels: Labels) -> bool:
    return any(
        term.match_expressions and all(is_met(each, labels) for each in term.match_expressions) for term in terms
    )


def _owners(change: Change) -> Iterator[Call]:
    for entry in (change.old, change.new):
        if entry is not None:
            yield from _owner(entry)


def _owner(child: Entry) -> Iterator[Call]:
    """The deployment it is labelled as of, if any; whether it is there is for its reconcile to see."""
    deployment = child.labels.get(LABEL_DEPLOYMENT)
    if deployment:
        yield Call(ObjectKey(DEPLOYMENT, child.key.namespace, deployment))


def _is_ending(change: Change) -> bool:
    return change.new is None or change.new.is_terminating


def _uses(entry: Entry | None) -> _Uses | None:
    if entry is None:
        return None
    spec = entry.spec
    pools = tuple(pool["name"] for pool in spec.get("pools") or ())
    for_others = {name: value for name, value in spec.items() if name not in ("replicas", "serving", "rollout")}
    return _Uses((spec.get("route") or {}).get("name", ""), pools, repr(for_others))


def _terms(entry: Entry | None) -> tuple[NodeSelectorTerm, ...] | None:
    if entry is None:
        return None
    try:
        return AcceleratorPoolSpec.model_validate_json(entry.spec_json).nodes.selector_terms
    except ValidationError:  # of a newer API than ours; the pool's reconcile says so
        return ()


def _move(index: defaultdict[str, set[ObjectKey]], key: ObjectKey, old: Iterable[str], new: Iterable[str]) -> None:
    for name in old:
        index[name].discard(key)
        if not index[name]:
            del index[name]
    for name in new:
        index[name].add(key)
