"""Carries out a deployment's plan: its revisions, its replicas' objects, and what is left over of either.

`deployments` calls it after planning; it decides nothing about counts. Objects come before the StatefulSet whose pods
need them, and go after its last pod: a NetworkPolicy must not go while a replica drains.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hanmaru_contracts import keys, names
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ReplicaId

from hanmaru_operator import kinds
from hanmaru_operator.apply import Applier
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.reconcile.options import Asker, Choice
from hanmaru_operator.reconcile.view import View
from hanmaru_operator.render.bundle import Bundle, placement_of, revision_manifests
from hanmaru_operator.render.group import ReplicaSecrets, replica_manifests
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.settings import RedisFile, RenderSettings
from hanmaru_operator.tracing import step as trace_step
from hanmaru_operator.types import (
    CreateReplica,
    DeleteReplica,
    ObjectKey,
    PoolName,
    ReplicaFacts,
    ReplicaPlan,
    RestartGroup,
    Revision,
)

_log = logging.getLogger(__name__)
_OF_REVISIONS = frozenset({kinds.CONTROLLER_REVISIONS.kind, kinds.CONFIG_MAPS.kind})


@dataclass(frozen=True, slots=True)
class Trust:
    """What replicas' secrets are made of."""

    platform_secret: bytes = field(repr=False)
    worker_redis: Mapping[RedisFile, str] = field(default_factory=dict, repr=False)
    """What workers get to reach Redis with."""
    tier_redis: Mapping[RedisFile, str] = field(default_factory=dict, repr=False)
    """What those with a shared cache get to reach its Redis with."""


class Children:
    """The objects of deployments."""

    def __init__(self, *, store: Store, view: View, applier: Applier, settings: RenderSettings, trust: Trust) -> None:
        self._store = store
        self._view = view
        self._applier = applier
        self._settings = settings
        self._trust = trust

    async def carry_out(
        self, asker: Asker, choices: Sequence[Choice], replicas: Sequence[ReplicaFacts], plan: ReplicaPlan
    ) -> None:
        """Make the cluster so. Raises ClusterError, ForeignObject."""
        owner = asker.owner
        bundles = {(bundle.pool, bundle.revision): bundle for bundle in asker.bundles}
        bundles |= {(choice.bundle.pool, choice.bundle.revision): choice.bundle for choice in choices if choice.bundle}
        by_id = {replica.id: replica for replica in replicas}
        deleted = {step.id for step in plan.steps if isinstance(step, DeleteReplica)}
        staying = [replica for replica in replicas if not replica.is_terminating and replica.id not in deleted]
        created = [step for step in plan.steps if isinstance(step, CreateReplica)]
        current = {(choice.bundle.pool, choice.bundle.revision) for choice in choices if choice.bundle}
        used = current | {(r.pool, r.revision) for r in replicas} | {(step.pool, step.revision) for step in created}
        for place in sorted(used & bundles.keys()):
            await self._applier.ensure_all(revision_manifests(bundles[place], owner))
        for step in plan.steps:
            if isinstance(step, DeleteReplica):
                await self._delete(owner, step.id)
                _tell("replica.deleted", owner, step.id, why=step.why)
            elif isinstance(step, RestartGroup):
                await self._restart(by_id[step.id])
                _tell("group.restarted", owner, step.id, why=step.why)
        for replica in staying:
            if not replica.is_ready:  # pods of it may be about to mount the Secret, which nobody may watch
                self._applier.doubt_unwatched(ObjectKey(kinds.SECRETS.kind, owner.namespace, replica.id))
            await self._ensure(owner, replica.id, bundles.get((replica.pool, replica.revision)))
        for step in created:
            await self._ensure(owner, step.id, bundles[step.pool, step.revision])
            _tell("replica.created", owner, step.id, pool=step.pool, revision=step.revision)
        await self._tidy(owner, used, by_id.keys() | {step.id for step in created})

    async def _ensure(self, owner: Owner, replica: ReplicaId, bundle: Bundle | None) -> None:
        """Have a replica's objects be as its revision says; without a snapshot, whose hand deleted it, they stay."""
        if bundle is None:
            return
        pool = self._view.pool_spec(bundle.pool)
        secrets = ReplicaSecrets(
            keys.replica_key(self._trust.platform_secret, owner.model, replica),
            self._trust.worker_redis,
            keys.tier_key(self._trust.platform_secret, owner.model),
            self._trust.tier_redis,
        )
        placement = placement_of(pool) if pool is not None else None
        account, *needed, group = replica_manifests(bundle, owner, replica, secrets, self._settings, placement)
        # Before the Secret, which is not watched: after a crash the account is what tells of the replica.
        await self._applier.ensure(account)
        await self._applier.ensure_all(needed)
        await self._applier.ensure(group)

    async def _delete(self, owner: Owner, replica: ReplicaId) -> None:
        """Its pods get SIGTERM and drain; the garbage collector does that, so nobody has to wait."""
        entry = self._store.get(ObjectKey(kinds.STATEFUL_SETS.kind, owner.namespace, replica))
        if entry is not None and entry.owner_uid == owner.uid:
            await self._applier.delete_at_once(entry)

    async def _restart(self, replica: ReplicaFacts) -> None:
        """Only the pods that the plan saw: a successor may have been made meanwhile."""
        meant = {pod.uid for pod in replica.pods}
        pods = self._store.pods_of(replica.namespace, replica.id)
        await self._applier.prune(pod for pod in pods if pod.uid in meant)

    async def _tidy(
        self, owner: Owner, used: Collection[tuple[PoolName, Revision]], replicas: Collection[ReplicaId]
    ) -> None:
        """Take away what belongs to replicas whose last pod is gone, and to revisions that nobody runs."""
        children = [c for c in self._store.children(owner.namespace, owner.name) if c.owner_uid == owner.uid]
        stale = [c for c in children if _replica(c) is not None and _replica(c) not in replicas]
        for replica in sorted({found for c in stale if (found := _replica(c)) is not None}):
            # First of all, because Secrets are not watched: the others remember the replica until it is gone.
            await self._applier.delete_unwatched(ObjectKey(kinds.SECRETS.kind, owner.namespace, replica), owner.uid)
        await self._applier.prune(stale)
        await self._applier.prune(_stale_revisions(children, used))


def _tell(event: str, owner: Owner, replica: ReplicaId, **more: str) -> None:
    """To the log and the reconcile's span; people hear of it by Events."""
    fields = {"replica": str(replica), **{name: str(value) for name, value in more.items()}}
    log_event(_log, logging.INFO, event, namespace=owner.namespace, deployment=owner.name, **fields)
    trace_step(event, **fields)


def _replica(child: Entry) -> ReplicaId | None:
    label = child.labels.get(names.LABEL_REPLICA)
    return ReplicaId(label) if label else None


def _stale_revisions(children: Iterable[Entry], used: Collection[tuple[PoolName, Revision]]) -> list[Entry]:
    return [
        child
        for child in children
        if child.key.kind in _OF_REVISIONS
        and names.LABEL_REVISION in child.labels
        and names.LABEL_REPLICA not in child.labels
        and (PoolName(child.labels.get(names.LABEL_POOL, "")), Revision(child.labels[names.LABEL_REVISION])) not in used
    ]
