"""A pool's reconcile: lifts the gates of groups that fit, and says how full the pool is.

One at a time for each pool, and a node belongs to one pool, so no room is given away twice. Deployments that wait for
room are looked at again when what is free has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from hanmaru_contracts import names
from hanmaru_contracts.log import log_event

from hanmaru_operator import kinds
from hanmaru_operator.api_errors import Conflict, Invalid, NotFound
from hanmaru_operator.apply import Applier
from hanmaru_operator.events import Recorder, notes
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.groups import is_lifted
from hanmaru_operator.plan.lifts import LiftPlan, group_of, plan_lifts
from hanmaru_operator.reconcile.view import View
from hanmaru_operator.status import merge_conditions, pool_status
from hanmaru_operator.types import LiftGate, ObjectKey, PoolFacts, PoolName, ReplicaFacts

_log = logging.getLogger(__name__)
_TERMS = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms"


class PoolReconciler:
    """For keys of AcceleratorPools."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        applier: Applier,
        now: Callable[[], float],
        room_changed: Callable[[PoolName], None],
        record: Recorder,
    ) -> None:
        """`now`: Unix seconds. `room_changed` looks again at the deployments that wait for the pool's room."""
        self._store = store
        self._view = view
        self._applier = applier
        self._now = now
        self._room_changed = room_changed
        self._record = record
        self._rooms: dict[PoolName, object] = {}

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Look at the pool as it is. Raises ClusterError."""
        name = PoolName(key.name)
        entry = self._store.get(key)
        if entry is None:
            self._rooms.pop(name, None)
            return None
        pool = self._view.pool(name)
        if pool is None:
            return None
        replicas = self._view.replicas_in(name)
        plan = lift_plan(pool, replicas, self._now())
        for lift in plan.lifts:
            await self._lift(lift)
        room = [(each.node.name, sorted(each.free.items())) for each in plan.rooms], sorted(plan.without_room)
        if self._rooms.get(name) != room:
            self._rooms[name] = room
            self._room_changed(name)
        await self._show(entry, pool, replicas)
        return None

    async def _lift(self, lift: LiftGate) -> None:
        """Narrow the pod to its node and take our gate away, in one request: a crash leaves it gated or on its way."""
        pod = self._store.get(ObjectKey(kinds.PODS.kind, lift.namespace, lift.pod))
        if pod is None or pod.uid != lift.uid or is_lifted(pod.pod):
            return
        try:
            await self._applier.patch(pod, _lifting(pod, lift, datetime.fromtimestamp(self._now(), UTC)))
        except (Conflict, NotFound):
            return  # it is another pod by now; the watch tells
        except Invalid as error:  # as above, or a pod whose affinity somebody else has narrowed
            log_event(_log, logging.WARNING, "pool.lift_refused", pod=pod.key.name, message=error.message)

    async def _show(self, entry: Entry, pool: PoolFacts, replicas: list[ReplicaFacts]) -> None:
        status, statements = pool_status(pool, replicas)
        old = entry.status.get("conditions") or ()
        conditions = merge_conditions(old, statements, generation=entry.generation, now=self._now())
        shown = status.model_copy(update={"conditions": conditions})
        await self._applier.ensure_status(entry, shown.model_dump(mode="json", by_alias=True, exclude_none=True))
        for note in notes(old, conditions):
            self._record(entry, note)


def lift_plan(pool: PoolFacts, replicas: Iterable[ReplicaFacts], now: float) -> LiftPlan:
    """The line in front of a pool: whom it lets in, and what that leaves. Deployments ask it for what is free."""
    return plan_lifts(pool, filter(None, map(group_of, replicas)), now)


def _lifting(pod: Entry, lift: LiftGate, at: datetime) -> list[Mapping[str, Any]]:
    annotations = {
        names.ANNOTATION_PLANNED_NODE: lift.node,
        names.ANNOTATION_GATE_LIFTED_AT: at.isoformat(timespec="seconds"),
        names.ANNOTATION_LIFTED_WITH: lift.lifted_with,
    }
    only = [{"key": "metadata.name", "operator": "In", "values": [lift.node]}]
    return [
        {"op": "test", "path": "/spec/schedulingGates/0/name", "value": names.GATE_GROUP},
        *(
            {"op": "add", "path": f"{_TERMS}/{index}/matchFields", "value": only}
            for index in range(pod.pod.affinity_terms)
        ),
        *(
            {"op": "add", "path": f"/metadata/annotations/{name.replace('/', '~1')}", "value": value}
            for name, value in annotations.items()
        ),
        {"op": "remove", "path": "/spec/schedulingGates/0"},
    ]
