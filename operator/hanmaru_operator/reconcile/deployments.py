"""A deployment's reconcile: look at all of it, plan, apply, and say in its status what was found.

    facts of the checkpoints -> what each pool offers -> replicas now and wanted -> objects -> status and events

It may be cut off at any line and run again: every step looks at what is there. Deleting a deployment needs nothing of
this: all children have it as their owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, ResolvedStatus
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT
from pydantic import ValidationError

from hanmaru_operator import kinds
from hanmaru_operator.api_errors import Forbidden, Invalid
from hanmaru_operator.apply import Applier, ForeignObject
from hanmaru_operator.events import Recorder, notes
from hanmaru_operator.fleet import Fleet
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.lifts import LiftPlan
from hanmaru_operator.plan.replicas import plan_replicas
from hanmaru_operator.reconcile.children import Children
from hanmaru_operator.reconcile.model_facts import Known, ModelFactsReader, Unknown
from hanmaru_operator.reconcile.namespaces import namespace_labels
from hanmaru_operator.reconcile.options import Asker, Choice, choose, licences, with_room
from hanmaru_operator.reconcile.pools import lift_plan
from hanmaru_operator.reconcile.routes import Routes, claim_of
from hanmaru_operator.reconcile.view import View
from hanmaru_operator.render.bundle import read_bundle
from hanmaru_operator.render.identity import Owner, replica_id
from hanmaru_operator.render.revision import source_hash
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.status import MAX_MESSAGE_CHARS, deployment_status, merge_conditions
from hanmaru_operator.types import (
    ConditionType,
    DeploymentFacts,
    ObjectKey,
    PoolFacts,
    PoolName,
    ReplicaFacts,
    ReplicaPlan,
    Statement,
)

_LINE_BELIEVED_S = 1.0
"""How long a pool's line counts while nothing changes: new groups keep their place in it for a minute."""
FOREIGN_RETRY_S = 30.0
"""Somebody has to rename or delete an object of theirs; its going is not watched."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A deployment with everything its plan depends on."""

    entry: Entry
    asker: Asker
    choices: tuple[Choice, ...]
    facts: DeploymentFacts
    given: tuple[Statement, ...]
    """What only the reconcile knows, for the status."""
    retry_at: float | None
    """When to ask again for a checkpoint's facts."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A pool and the line in front of it, as they were."""

    room_version: int
    at: float
    pool: PoolFacts
    plan: LiftPlan


class DeploymentReconciler:
    """For keys of ModelDeployments."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        routes: Routes,
        applier: Applier,
        children: Children,
        fleet: Fleet,
        settings: RenderSettings,
        return_after_s: float,
        record: Recorder,
        now: Callable[[], float],
        new_suffix: Callable[[], str],
    ) -> None:
        """`return_after_s`: as for `plan_replicas`. `now`: Unix seconds. `new_suffix`: five random characters."""
        self._store = store
        self._view = view
        self._routes = routes
        self._applier = applier
        self._children = children
        self._fleet = fleet
        self._model_facts = ModelFactsReader(store, applier, settings)
        self._settings = settings
        self._return_after_s = return_after_s
        self._record = record
        self._now = now
        self._new_suffix = new_suffix
        self._room_since: dict[ObjectKey, float] = {}
        self._wants_room: set[ObjectKey] = set()
        self._lines: dict[PoolName, _Line] = {}

    def wants_room(self, key: ObjectKey) -> bool:
        """Whether its plan may change when a pool has more room."""
        return key in self._wants_room

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Seconds until it should be looked at again. Raises ClusterError."""
        entry = self._store.get(key)
        if entry is None or entry.is_terminating:
            self._room_since.pop(key, None)
            self._wants_room.discard(key)
            return None
        try:
            spec = ModelDeploymentSpec.model_validate_json(entry.spec_json)
        except ValidationError as error:
            await self._show_unreadable(entry, error)
            return None
        problem: Statement | None = None
        try:
            seen = await self._look(entry, spec)
        except ForeignObject as error:
            await self._show_problem(entry, _degraded("ForeignObject", error.message))
            return FOREIGN_RETRY_S
        plan = plan_replicas(
            seen.facts,
            lambda: replica_id(key.name, self._new_suffix()),
            return_after_s=self._return_after_s,
        )
        try:
            await self._children.carry_out(seen.asker, seen.choices, seen.facts.replicas, plan)
        except ForeignObject as error:
            problem = _degraded("ForeignObject", error.message)
        except (Invalid, Forbidden) as error:
            problem = _degraded("Refused", f"the API server refuses what was rendered: {error.message}")
        look_again_at = await self._show(seen, plan, problem)
        times = [at for at in (plan.look_again_at, look_again_at, seen.retry_at) if at is not None]
        soonest_s = max(0.0, min(times) - self._now()) if times else None
        return FOREIGN_RETRY_S if problem and soonest_s is None else soonest_s

    # --- look ------------------------------------------------------------------------------------------------------

    async def _look(self, entry: Entry, spec: ModelDeploymentSpec) -> _Seen:
        key, now = entry.key, self._now()
        owner = Owner(key.namespace, key.name, entry.uid)
        children = self._store.children(key.namespace, key.name)
        manifests = (
            {"metadata": {"labels": dict(child.labels)}, "data": child.data}
            for child in children
            if child.key.kind == kinds.CONTROLLER_REVISIONS.kind and child.owner_uid == entry.uid
        )
        bundles = [bundle for manifest in manifests if (bundle := read_bundle(manifest)) is not None]
        asker = Asker(owner, spec, entry.annotations.get(ANNOTATION_RESTARTED_AT, ""), bundles)
        refused = self._refusals(entry)
        sources = [pool.source or spec.source for pool in spec.pools]
        known: Mapping[str, Known | Unknown] = (
            {source_hash(source): Unknown(refused[0].message) for source in sources}
            if refused
            else await self._model_facts.facts_of(owner, sources, asker.restarted_at, now)
        )
        refused += _licence_refusals(spec, known)
        choices = self._choices(asker, known)
        leases = await self._fleet.read([owner.model])
        replicas = self._view.replicas_of(key.namespace, key.name, None if leases is None else leases[owner.model])
        facts = self._facts(entry, spec, choices, replicas, may_run=not refused and not spec.lifecycle.stopped)
        facts, choices = self._with_room(entry, facts, choices)
        retries = [each.retry_at for each in known.values() if isinstance(each, Unknown) and each.retry_at]
        given = (*refused, *_unreadable(known), *_remarks(choices))
        return _Seen(entry, asker, choices, facts, given, min(retries, default=None))

    def _refusals(self, entry: Entry) -> list[Statement]:
        """Why it may not even be looked into: nothing runs for it, not even a pod that reads its checkpoint."""
        claim, routes = claim_of(entry), self._routes.plan()
        return [] if routes.owns(claim) else [routes.statement(claim)]

    def _choices(self, asker: Asker, known: Mapping[str, Known | Unknown]) -> tuple[Choice, ...]:
        namespaces = namespace_labels(self._store)
        return tuple(
            choose(
                asker,
                pool,
                self._view.pool_spec(PoolName(pool.name)),
                self._view.pool_nodes(PoolName(pool.name)).nodes,
                known[source_hash(pool.source or asker.spec.source)],
                namespaces,
                self._settings,
            )
            for pool in asker.spec.pools
        )

    def _facts(
        self,
        entry: Entry,
        spec: ModelDeploymentSpec,
        choices: tuple[Choice, ...],
        replicas: tuple[ReplicaFacts, ...],
        *,
        may_run: bool,
    ) -> DeploymentFacts:
        nodes = {pod.node for replica in replicas for pod in replica.pods if pod.node and not pod.has_ended}
        seen = {name: self._view.node(name) for name in nodes}
        return DeploymentFacts(
            namespace=entry.key.namespace,
            name=entry.key.name,
            uid=entry.uid,
            generation=entry.generation,
            spec=spec,
            options=tuple(choice.option for choice in choices),
            replicas=replicas,
            may_run=may_run,
            unhealthy_nodes=frozenset(n for n, node in seen.items() if node is None or not node.node.is_ready),
            cordoned_nodes=frozenset(
                n for n, node in seen.items() if node is not None and not node.node.is_schedulable
            ),
            preferred_free_since=None,
            now=self._now(),
        )

    def _with_room(
        self, entry: Entry, facts: DeploymentFacts, choices: tuple[Choice, ...]
    ) -> tuple[DeploymentFacts, tuple[Choice, ...]]:
        """The same with the pools' room, which costs more than all the rest; nothing at rest needs it."""
        key = entry.key
        if is_at_rest(facts):
            self._wants_room.discard(key)
            self._room_since.pop(key, None)
            return facts, choices
        self._wants_room.add(key)
        lines: dict[PoolName, LiftPlan] = {}
        roomy = []
        for choice in choices:
            name = choice.option.pool
            line = self._line(name, facts.now)
            if line is None:
                roomy.append(choice)
                continue
            lines[name] = line.plan
            roomy.append(with_room(choice, line.pool.spec, line.plan))
        waiting = frozenset(
            replica for line in lines.values() for namespace, replica in line.without_room if namespace == key.namespace
        )
        options = tuple(choice.option for choice in roomy)
        with_options = replace(facts, options=options, without_room=waiting)
        since = self._preferred_free_since(key, with_options)
        return replace(with_options, preferred_free_since=since), tuple(roomy)

    def _line(self, name: PoolName, now: float) -> _Line | None:
        """Everybody who waits for a pool asks at once when its room changes, and each would go through all who wait."""
        version, last = self._view.room_version, self._lines.get(name)
        if last is not None and last.room_version == version and abs(now - last.at) < _LINE_BELIEVED_S:
            return last
        pool = self._view.pool(name)
        if pool is None:
            self._lines.pop(name, None)
            return None
        line = _Line(version, now, pool, lift_plan(pool, self._view.replicas_in(name), now))
        self._lines[name] = line
        return line

    def _preferred_free_since(self, key: ObjectKey, facts: DeploymentFacts) -> float | None:
        """Since when a better pool has had room; forgotten with the process, which only makes the return later."""
        order = {option.pool: index for index, option in enumerate(facts.options)}
        worst = max((order.get(replica.pool, 0) for replica in facts.replicas if not replica.is_terminating), default=0)
        if not any(option.free_groups for option in facts.options[:worst]):
            self._room_since.pop(key, None)
            return None
        return self._room_since.setdefault(key, facts.now)

    # --- show ------------------------------------------------------------------------------------------------------

    async def _show(self, seen: _Seen, plan: ReplicaPlan, problem: Statement | None) -> float | None:
        """Write the status and tell what changed; when a statement may change by time alone."""
        entry = seen.entry
        old = entry.status.get("conditions") or ()
        newest = next((choice.bundle for choice in seen.choices if choice.bundle), None)
        report = deployment_status(
            seen.facts,
            plan,
            (*seen.given, *([problem] if problem else [])),
            plans=[choice.plan for choice in seen.choices],
            resolved=ResolvedStatus(revision=newest.resolved_revision, image=newest.image) if newest else None,
            old_conditions=old,
        )
        conditions = merge_conditions(old, report.statements, generation=entry.generation, now=self._now())
        restarted_at = seen.asker.restarted_at[:MAX_MESSAGE_CHARS]
        status = report.status.model_copy(update={"conditions": conditions, "restarted_at": restarted_at})
        await self._applier.ensure_status(entry, status.model_dump(mode="json", by_alias=True, exclude_none=True))
        for note in notes(old, conditions, plan.steps):
            self._record(entry, note)
        return report.look_again_at

    async def _show_problem(self, entry: Entry, problem: Statement) -> None:
        """Only that; the rest of the status stays as it was when the object could last be looked at."""
        old = entry.status.get("conditions") or ()
        kept = [
            Statement(
                ConditionType(c["type"]),
                {"True": True, "False": False}.get(c["status"]),
                c["reason"],
                c.get("message", ""),
            )
            for c in old
            if c["type"] in set(ConditionType) and c["type"] != problem.type
        ]
        conditions = merge_conditions(old, [*kept, problem], generation=entry.generation, now=self._now())
        shown = {**entry.status, "conditions": [c.model_dump(mode="json", by_alias=True) for c in conditions]}
        await self._applier.ensure_status(entry, shown)
        for note in notes(old, conditions):
            self._record(entry, note)

    async def _show_unreadable(self, entry: Entry, error: ValidationError) -> None:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        await self._show_problem(entry, _degraded("SpecNotUnderstood", f"this operator cannot read the spec: {faults}"))


def is_at_rest(facts: DeploymentFacts) -> bool:
    """Whether room is of no interest: all replicas serve, in the best pool, as they should, on nodes that are well."""
    live = [replica for replica in facts.replicas if not replica.is_terminating]
    if not facts.may_run:
        return True
    best = next((option for option in facts.options if option.revision is not None), None)
    return (
        best is not None
        and len(live) == len(facts.replicas) == facts.spec.replicas
        and not facts.unhealthy_nodes
        and not facts.cordoned_nodes
        and all(replica.is_ready and replica.pool == best.pool for replica in live)
        and all(replica.revision == best.revision for replica in live)
        and not any(option.min_replicas for option in facts.options if option is not best)
        and (best.max_replicas is None or best.max_replicas >= len(live))
    )


def _licence_refusals(spec: ModelDeploymentSpec, known: Mapping[str, Known | Unknown]) -> list[Statement]:
    missing = sorted(licences(known.values()) - {spec.licence.accepted})
    if not missing:
        return []
    message = (
        f"the checkpoint asks for {', '.join(repr(name) for name in missing)}; read it and name it in licence.accepted"
    )
    return [Statement(ConditionType.LICENCE_NOT_ACCEPTED, True, "NotAccepted", message)]


def _unreadable(known: Mapping[str, Known | Unknown]) -> list[Statement]:
    """Checkpoints that were looked at in vain, or cannot be; one that is being read is no trouble yet."""
    failed = {each.pod: each.problem for each in known.values() if isinstance(each, Unknown) and each.retry_at}
    stuck = {each.pod: each.waits_for for each in known.values() if isinstance(each, Unknown) and each.waits_for}
    return [
        _degraded("ModelNotRead", f"pod `{pod}`, which is to read the model's config.json, does not start: {why}")
        for pod, why in sorted(stuck.items())
    ] + [
        _degraded("ModelUnreadable", f"{problem}; it is read again in a while, and at once when pod `{pod}` is deleted")
        for pod, problem in sorted(failed.items())
    ]


def _remarks(choices: tuple[Choice, ...]) -> tuple[Statement, ...]:
    """What the pools' choices say beside the plan."""
    found: list[Statement] = []
    forbidden = [choice.option.refusal for choice in choices if not choice.is_allowed]
    if forbidden:
        found.append(Statement(ConditionType.NOT_ALLOWED, True, "PoolNotAllowed", "; ".join(forbidden)))
    outdated = [choice.option.pool for choice in choices if choice.is_outdated]
    if outdated:
        message = f"the operator would now make replicas in {', '.join(outdated)} otherwise; `hanmaru rollout restart`"
        found.append(Statement(ConditionType.DEFAULTS_OUTDATED, True, "OperatorChanged", message))
    experimental = [why for choice in choices for why in choice.experimental]
    if experimental:
        found.append(Statement(ConditionType.EXPERIMENTAL, True, "Unproven", "; ".join(experimental)))
    ignored = dict.fromkeys(path for choice in choices for path in choice.ignored_fields)
    if ignored:
        message = f"left out of serving.podTemplate, as only a pool's podTemplate may set it: {', '.join(ignored)}"
        found.append(Statement(ConditionType.FIELDS_IGNORED, True, "NotForAuthors", message))
    return tuple(found)


def _degraded(reason: str, message: str) -> Statement:
    return Statement(ConditionType.DEGRADED, True, reason, message)
