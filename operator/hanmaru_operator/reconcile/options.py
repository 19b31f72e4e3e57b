"""What each pool of a deployment offers it: the model planned there, a revision, and the room for it. Pure.

`deployments` hands the options to the plan of replicas and to the status. A pool on which nothing can run says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import DeploymentPool, ModelDeploymentSpec, PlanStatus, Serving
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.errors import HanmaruError

from hanmaru_operator.observe import pod_requests
from hanmaru_operator.plan.access import NamespaceLabels, may_use_pool
from hanmaru_operator.plan.engine import EnginePlan, Refused, plan_engine
from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.lifts import LiftPlan
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_operator.plan.placement import GroupShape, offer
from hanmaru_operator.plan.spec import Naming, engine_spec
from hanmaru_operator.reconcile.model_facts import Known, Unknown
from hanmaru_operator.render.bundle import Bundle, choose_revision, is_outdated, make_bundle
from hanmaru_operator.render.bundle import GroupShape as RenderedShape
from hanmaru_operator.render.identity import Owner
from hanmaru_operator.render.merge import for_author
from hanmaru_operator.render.revision import Written, written_hash
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.render.source import checkpoint_path
from hanmaru_operator.types import NodeFacts, PoolName, PoolOption

READING_MODEL = "the model's config.json is being read"


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of `spec.pools` with everything found out about it."""

    option: PoolOption
    plan: PlanStatus
    """For the status."""
    bundle: Bundle | None = None
    """What a new replica here is made from. None: nothing can run here."""
    is_allowed: bool = True
    """Whether the pool takes deployments of this namespace."""
    is_outdated: bool = False
    """This operator would make the same revision otherwise."""
    experimental: tuple[str, ...] = ()
    """Why what was planned is unproven."""
    ignored_fields: tuple[str, ...] = ()
    """Of the deployment's pod template for this pool: paths that its author may not set."""


@dataclass(frozen=True, slots=True)
class Asker:
    """The deployment that asks."""

    owner: Owner
    spec: ModelDeploymentSpec
    restarted_at: str
    bundles: Sequence[Bundle]
    """Its revisions so far."""


def choose(
    asker: Asker,
    entry: DeploymentPool,
    pool: AcceleratorPoolSpec | None,
    nodes: Sequence[NodeFacts],
    known: Known | Unknown,
    namespaces: NamespaceLabels,
    settings: RenderSettings,
) -> Choice:
    """What one pool offers, without its room."""
    name = PoolName(entry.name)
    if pool is None:
        return _refused(entry, f"there is no AcceleratorPool `{name}`")
    if not may_use_pool(pool.allowed_namespaces, asker.owner.namespace, namespaces):
        why = f"pool `{name}` does not take deployments of namespace `{asker.owner.namespace}`"
        return replace(_refused(entry, why), is_allowed=False)
    if isinstance(known, Unknown):
        reading = f"{READING_MODEL} by pod `{known.pod}`; `kubectl describe` it if that takes long"
        return _refused(entry, known.problem or reading, is_pending=not known.problem)
    written = Written(asker.spec, entry, pool, asker.restarted_at)
    kept = choose_revision(asker.bundles, name, written_hash(written))
    try:
        planned = plan_engine(
            known.facts, EnginePool.from_spec(name, pool), _to_be_had(written.serving, settings), nodes
        )
        fresh = _fresh(asker, written, planned, known, kept, settings)
    except HanmaruError as error:  # a pod template, an image, a size that cannot be read
        planned, fresh = Refused(name, ()), None
        refusal = error.message
    else:
        refusal = planned.message if isinstance(planned, Refused) else ""
    bundle = kept or fresh
    if bundle is None:
        return _refused(entry, refusal)
    return Choice(
        option=_option(entry, pool, bundle, refusal),
        plan=bundle.plan.model_copy(update={"message": refusal or bundle.plan.message}),
        bundle=bundle,
        is_outdated=kept is not None and fresh is not None and is_outdated(kept, fresh),
        experimental=planned.experimental if isinstance(planned, EnginePlan) else (),
        ignored_fields=for_author(written.serving.pod_template)[1],
    )


def with_room(choice: Choice, pool: AcceleratorPoolSpec, line: LiftPlan) -> Choice:
    """The same with what the pool has free for one more group, behind those that wait already."""
    option = choice.option
    if option.revision is None or pool.devices.resource is None:
        return choice
    shape = GroupShape(
        requests=option.pod_requests,
        size=option.group_size,
        resource=pool.devices.resource.name,
        domain_key=pool.topology.domain_key,
        tolerations=pool.nodes.tolerations,
    )
    found = offer(shape, line.rooms, held_by=line.held_by)
    return replace(
        choice,
        option=replace(
            option,
            free_groups=0 if option.refusal else found.free_groups,
            devices_missing=found.devices_missing,
            no_room=option.refusal or found.no_room,
            fits_empty=found.fits_empty and not option.refusal,
        ),
    )


def licences(known: Iterable[Known | Unknown]) -> frozenset[str]:
    """Licences that the deployment's checkpoints ask for."""
    return frozenset(each.facts.licence for each in known if isinstance(each, Known) and each.facts.licence)


def _fresh(
    asker: Asker,
    written: Written,
    planned: EnginePlan | Refused,
    known: Known,
    kept: Bundle | None,
    settings: RenderSettings,
) -> Bundle | None:
    """The revision as this operator would make it now; with the commit that is kept, if one is."""
    if isinstance(planned, Refused):
        return None
    commit = kept.resolved_revision if kept is not None else known.revision
    shape = _shape(asker, written, planned, known.facts, settings)
    return make_bundle(asker.owner, written, shape, settings, commit)


def _shape(
    asker: Asker, written: Written, planned: EnginePlan, facts: ModelFacts, settings: RenderSettings
) -> RenderedShape:
    naming = Naming(
        model=ModelRef(namespace=asker.owner.namespace, name=asker.owner.name),
        spec=asker.spec,
        entry=written.entry,
        checkpoint=checkpoint_path(written.source),
        trace_endpoint=settings.trace_endpoint or None,
    )
    pool = EnginePool.from_spec(written.entry.name, written.pool)
    return RenderedShape(
        size=planned.pods,
        devices_per_pod=planned.devices_per_pod,
        engine_spec=engine_spec(planned, facts, pool, naming),
        plan=PlanStatus(
            pool=planned.pool,
            fits=True,
            nodes=planned.pods,
            devices=planned.devices,
            parallelism=planned.layout,
            context_tokens=planned.context_tokens,
            global_tokens=planned.global_tokens,
            sliding_tokens=planned.sliding_tokens,
            weight_bytes=planned.weight_bytes,
            message="; ".join((*planned.notes, *_missing(written, settings)))[:1024],
        ),
    )


def _to_be_had(serving: Serving, settings: RenderSettings) -> Serving:
    """What was asked for without what the installation lacks, so that no memory is kept for it."""
    if settings.tier is not None:
        return serving
    return serving.model_copy(update={"kv_cache": serving.kv_cache.model_copy(update={"tier": None})})


def _missing(written: Written, settings: RenderSettings) -> tuple[str, ...]:
    """What was asked for and the installation has not."""
    if written.serving.kv_cache.tier is None or settings.tier is not None:
        return ()
    return ("without a shared cache (kvCache.tier): this installation has no Redis for it (sharedCache of the chart)",)


def _option(entry: DeploymentPool, pool: AcceleratorPoolSpec, bundle: Bundle, refusal: str) -> PoolOption:
    pod: Mapping[str, object] = bundle.pod_template["spec"]
    return PoolOption(
        pool=PoolName(entry.name),
        min_replicas=entry.min_replicas,
        max_replicas=entry.max_replicas,
        revision=bundle.revision,
        refusal=refusal,
        pod_requests=pod_requests(pod),
        group_size=bundle.size,
        no_room=refusal,
        fits_empty=not refusal,
        resource=pool.devices.resource.name if pool.devices.resource else "",
        domain_key=pool.topology.domain_key,
        bind_timeout_s=float(pool.scheduling.bind_timeout_seconds),
    )


def _refused(entry: DeploymentPool, why: str, *, is_pending: bool = False) -> Choice:
    option = PoolOption(
        pool=PoolName(entry.name),
        min_replicas=entry.min_replicas,
        max_replicas=entry.max_replicas,
        revision=None,
        refusal=why,
        is_pending=is_pending,
        no_room=why,
        fits_empty=False,
    )
    return Choice(option, PlanStatus(pool=entry.name, fits=False, message=why[:1024]))
