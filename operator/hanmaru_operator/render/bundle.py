"""`Bundle`: the snapshot that every replica of one revision is made from, and the objects that keep it. Pure.

A reconcile reads the deployment's bundles, takes the one whose hash says that users wrote the same (`choose_revision`),
and makes a new one (`make_bundle`) only when there is none. So an operator with other defaults, or code that would
render otherwise, changes no replica; it makes a fresh bundle merely to compare (`is_outdated`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import PlanStatus
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineSpec

from hanmaru_operator.render.engines import ENGINES
from hanmaru_operator.render.identity import Owner, child, deployment_labels, revision_name
from hanmaru_operator.render.pod import SPEC_KEY, PodPlan, pod_template
from hanmaru_operator.render.revision import Written, revision_of, written_hash
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.types import Manifest, PoolName, Revision


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What the planner decided for one pool."""

    size: int
    """Pods of a group."""
    devices_per_pod: int
    """Of the pool's resource; cores on a pool of cores."""
    engine_spec: EngineSpec
    """As the workers are to read it."""
    plan: PlanStatus
    """The numbers for the deployment's status."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which nodes and which scheduler a group's pods may have: the pool's present word, not part of a revision."""

    node_terms: tuple[Manifest, ...]
    """As in node affinity: any one must hold."""
    priority_class: str = ""
    scheduler: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One revision of a deployment on one pool."""

    pool: PoolName
    revision: Revision
    written: str
    """`written_hash` of what users wrote."""
    image: str
    """Of the engine's container."""
    size: int
    """Pods of a group."""
    engine_spec: Mapping[str, Any]
    """`EngineSpec` as the worker reads it, defaults left out."""
    pod_template: Mapping[str, Any]
    """With `REPLICA` in the place of the replica's name."""
    placement: Placement
    """What the pool said when the snapshot was made."""
    plan: PlanStatus
    """For the deployment's status."""
    resolved_revision: str = ""
    """The commit of the checkpoint, where it has one."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer operator kept in the same snapshot."""

    @property
    def http_port(self) -> int:
        """Of the engine."""
        port: int = self.engine_spec.get("httpPort", names.ENGINE_HTTP_PORT)
        return port

    @property
    def supervisor_port(self) -> int:
        """Of the supervisor."""
        port: int = self.engine_spec.get("supervisorPort", names.SUPERVISOR_HTTP_PORT)
        return port


def placement_of(pool: AcceleratorPoolSpec) -> Placement:
    """Where the pool wants its pods now."""
    terms = [term.model_dump(mode="json", by_alias=True) for term in pool.nodes.selector_terms]
    for term in terms:
        for requirement in term["matchExpressions"]:
            if not requirement["values"]:
                del requirement["values"]
    return Placement(tuple(terms), pool.scheduling.priority_class_name, pool.scheduling.scheduler_name)


def make_bundle(
    owner: Owner, written: Written, shape: GroupShape, settings: RenderSettings, resolved_revision: str = ""
) -> Bundle:
    """The snapshot of a new revision. `resolved_revision` is the commit that the source's revision meant when read.

    Raises HanmaruError (CONFIGURATION): a broken pod template, an engine that cannot do what was planned, no image.
    """
    engine = written.pool.engine
    image = engine.image or settings.worker_images.get(engine.type, "")
    if not image:
        raise _wrong(f"the operator has no default image for {engine.type.value}; set the pool's engine.image")
    if shape.size > 1 and not ENGINES[engine.type].spans_nodes:
        raise _wrong(f"{engine.type.value} cannot run one replica on {shape.size} nodes")
    hub = written.source.hugging_face
    plan = PodPlan(
        owner=owner,
        written=written,
        spec=shape.engine_spec,
        size=shape.size,
        devices_per_pod=shape.devices_per_pod,
        image=image,
        revision=revision_of(written, image),
        commit=(resolved_revision or hub.revision) if hub else "",
    )
    return Bundle(
        pool=plan.pool,
        revision=plan.revision,
        written=written_hash(written),
        image=image,
        size=shape.size,
        engine_spec=_as_kept(shape.engine_spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
        pod_template=pod_template(plan, settings),
        placement=placement_of(written.pool),
        plan=shape.plan,
        resolved_revision=resolved_revision,
    )


def _as_kept(value: Any) -> Any:
    """Whole numbers without a decimal point: the API server keeps 3600.0 as 3600, and the file must stay the same."""
    if isinstance(value, dict):
        return {key: _as_kept(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_kept(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def choose_revision(existing: Iterable[Bundle], pool: PoolName, written: str) -> Bundle | None:
    """The snapshot of what users wrote, made before; the first by name should two operators have made one each."""
    fitting = [bundle for bundle in existing if bundle.pool == pool and bundle.written == written]
    return min(fitting, key=lambda bundle: bundle.revision, default=None)


def is_outdated(kept: Bundle, fresh: Bundle) -> bool:
    """Whether this operator would make the same revision otherwise: `DefaultsOutdated`.

    `fresh` is made with the commit that `kept` resolved; the plan's numbers are for people and do not count.
    """
    return (kept.image, kept.size, kept.engine_spec, kept.pod_template) != (
        fresh.image,
        fresh.size,
        fresh.engine_spec,
        fresh.pod_template,
    )


# --- how it is kept ------------------------------------------------------------------------------------------------

_PLACEMENT = "placement"


def revision_manifests(bundle: Bundle, owner: Owner) -> tuple[Manifest, ...]:
    """The snapshot, and the engine's spec as a file for the pods. Neither ever changes."""
    return render_controller_revision(bundle, owner), _engine_spec_config_map(bundle, owner)


def render_controller_revision(bundle: Bundle, owner: Owner) -> Manifest:
    """The snapshot as Kubernetes keeps it: its data cannot be changed, and it goes with the deployment."""
    labels = _labels(bundle, owner) | {names.LABEL_WRITTEN: bundle.written}
    placement = bundle.placement
    data = {
        **bundle.unknown,
        "written": bundle.written,
        "image": bundle.image,
        "size": bundle.size,
        "engineSpec": dict(bundle.engine_spec),
        "podTemplate": dict(bundle.pod_template),
        _PLACEMENT: {
            "nodeSelectorTerms": list(placement.node_terms),
            "priorityClassName": placement.priority_class,
            "schedulerName": placement.scheduler,
        },
        "plan": bundle.plan.model_dump(mode="json", by_alias=True),
        "resolvedRevision": bundle.resolved_revision,
    }
    name = revision_name(owner.name, bundle.pool, bundle.revision)
    # The number is required and orders a controller's own history; ours has no order.
    return child("apps/v1", "ControllerRevision", name, owner, labels) | {"revision": 1, "data": data}


def _engine_spec_config_map(bundle: Bundle, owner: Owner) -> Manifest:
    name = revision_name(owner.name, bundle.pool, bundle.revision)
    text = json.dumps(bundle.engine_spec, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    return child("v1", "ConfigMap", name, owner, _labels(bundle, owner)) | {"immutable": True, "data": {SPEC_KEY: text}}


def _labels(bundle: Bundle, owner: Owner) -> dict[str, str]:
    own = {names.LABEL_POOL: str(bundle.pool), names.LABEL_REVISION: str(bundle.revision)}
    return deployment_labels(owner, names.COMPONENT_WORKER) | own


_KNOWN = frozenset({"written", "image", "size", "engineSpec", "podTemplate", _PLACEMENT, "plan", "resolvedRevision"})


def read_bundle(manifest: Manifest) -> Bundle | None:
    """The snapshot in a ControllerRevision of ours; None for one that is not a snapshot. Unknown keys are kept."""
    labels = manifest.get("metadata", {}).get("labels", {})
    data = manifest.get("data")
    if not isinstance(data, Mapping) or names.LABEL_POOL not in labels or names.LABEL_REVISION not in labels:
        return None
    try:
        placement = data[_PLACEMENT]
        return Bundle(
            pool=PoolName(labels[names.LABEL_POOL]),
            revision=Revision(labels[names.LABEL_REVISION]),
            written=data["written"],
            image=data["image"],
            size=int(data["size"]),
            engine_spec=data["engineSpec"],
            pod_template=data["podTemplate"],
            placement=Placement(
                tuple(placement["nodeSelectorTerms"]), placement["priorityClassName"], placement["schedulerName"]
            ),
            plan=PlanStatus.model_validate(data["plan"]),
            resolved_revision=data.get("resolvedRevision", ""),
            unknown={key: value for key, value in data.items() if key not in _KNOWN},
        )
    except (KeyError, TypeError, ValueError):
        return None


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
