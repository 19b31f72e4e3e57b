"""ModelDeployments: do they serve, and if not, the operator's own reason; volumes; sizes that will not do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import (
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    PersistentVolumeClaimSource,
    PlanStatus,
)
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.names import ENGINE_CONTAINER
from hanmaru_operator.quantity import parse_quantity
from pydantic import ValidationError

from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.objects import Claim, Condition, Ours
from hanmaru_cli.doctor.platform_checks import version_numbers
from hanmaru_cli.doctor.pool_checks import Pool, facts_of, read_pools
from hanmaru_cli.doctor.world import Listed, World

IMAGE_VOLUMES_SINCE = (1, 35)
"""The first Kubernetes with OCI image volumes on unless switched off."""
LEAST_SHM_BYTES = 1 << 30
"""NCCL and the ranks' queues share memory there; a guess with room to spare, not measured on GPUs."""
_MANY_READERS = frozenset({"ReadOnlyMany", "ReadWriteMany"})
_REASONS = ("LicenceNotAccepted", "NameConflict", "NotAllowed", "Unschedulable", "Degraded")
"""Conditions that say why nothing serves, the most telling first."""
_TO_DO = {
    "LicenceNotAccepted": "read the model's licence and set spec.licence.accepted to its name",
    "NameConflict": "another namespace has the route's name: choose another route.name",
    "NotAllowed": "ask the pool's administrator to allow this namespace (allowedNamespaces)",
    "Unschedulable": "free or add devices, list another pool, or lower replicas; `hanmaru plan` shows what would fit",
    "Degraded": "`kubectl describe md` and the pods' lines below",
}


def check_deployments(world: World) -> list[Finding]:
    """Every deployment, or that there is none."""
    if not world.deployments.is_served:
        return []
    if world.deployments.unseen:
        return world.deployments.cannot_look("model", "ModelDeployments")
    if not world.deployments.items:
        to_do = "`kubectl apply` a ModelDeployment; docs/install.md has one"
        return [Finding(Mark.NOTE, "model", "", "there is no ModelDeployment: no model is served", to_do=to_do)]
    pools = {pool.name: pool for pool in read_pools(world)[0]}
    found = world.claims.cannot_look("storage", "PersistentVolumeClaims")
    for one in world.deployments:
        found += [*_state(one), *_sizes(one, pools, world)]
    return found


def _state(one: Ours) -> Iterable[Finding]:
    """What the operator says of it."""
    subject = f"md/{one.where}"
    available, observed = one.says("Available"), one.status.get("observedGeneration", 0)
    if observed < one.metadata.generation:
        seen = f"the operator has seen generation {observed} of {one.metadata.generation}"
        to_do = "if it stays so: does the operator run and lead? See the lines above"
        yield Finding(Mark.WARN, "model", subject, seen, "the newest", to_do)
    if available.status == "True":
        yield ok("model", available.message, subject)
        degraded = one.says("Degraded")
        if degraded.status == "True":
            yield _said(Mark.WARN, degraded, subject)
    elif available.reason == "Stopped":
        yield Finding(Mark.NOTE, "model", subject, available.message, to_do="set lifecycle.stopped to false to run it")
    elif available.type:
        why = [one.says(kind) for kind in _REASONS if one.says(kind).status == "True"]
        progress = one.says("Progressing")
        if not why and progress.status != "False":
            expected = "readiness within lifecycle.startupTimeoutSeconds"
            seen = f"{available.message}; {progress.reason}: {progress.message}"
            to_do = f"follow it: `hanmaru rollout status {one.metadata.name} -n {one.metadata.namespace}`"
            yield Finding(Mark.WARN, "model", subject, seen, expected, to_do)
        else:
            yield from (_said(Mark.FAIL, said, subject) for said in why or [progress])


def _said(mark: Mark, said: Condition, subject: str) -> Finding:
    seen = f"{said.type}: {said.reason}: {said.message}"
    return Finding(mark, "model", subject, seen, to_do=_TO_DO.get(said.type, f"`kubectl describe {subject}`"))


# --- sizes ---------------------------------------------------------------------------------------------------------


def _sizes(one: Ours, pools: Mapping[str, Pool], world: World) -> Iterable[Finding]:
    try:
        spec = ModelDeploymentSpec.model_validate(one.spec)
        status = ModelDeploymentStatus.model_validate(one.status)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        seen = f"this hanmaru cannot read its {place}"
        yield Finding(Mark.WARN, "model", f"md/{one.where}", seen, to_do="is it newer? Upgrade hanmaru")
        return
    plans = {plan.pool: plan for plan in status.plan}
    for entry in spec.pools:
        source, plan = entry.source or spec.source, plans.get(entry.name)
        if entry.name not in pools:
            if not world.pools.unseen:
                yield Finding(
                    Mark.FAIL, "model", f"md/{one.where}", f"it lists the pool {entry.name}, which is not there",
                    "an AcceleratorPool of that name", "make it, or take it from spec.pools",
                )  # fmt: skip
            continue
        if plan is not None:
            yield from _context(one, plan)
        if source.hugging_face is not None and plan is not None:
            yield from _download(one, pools[entry.name], plan)
        if (claim := source.persistent_volume_claim) is not None:
            pods = spec.replicas * max(plan.nodes if plan is not None else 1, 1)
            yield from _claim(one, claim, pods, world.claims)
        if source.image is not None:
            yield from _image_volume(one, world.version)
        serving = entry.serving or spec.serving
        yield from _shm(one, pools[entry.name].spec, serving.pod_template)


def _context(one: Ours, plan: PlanStatus) -> Iterable[Finding]:
    """The plan holds one request of full length, but hardly more."""
    if plan.fits and plan.context_tokens and plan.global_tokens < 2 * plan.context_tokens:
        seen = (
            f"on pool {plan.pool} the cache holds {plan.global_tokens:,} tokens and one request may take"
            f" {plan.context_tokens:,}: two long ones wait for each other"
        )
        to_do = "lower serving.contextTokens, or give a replica more devices"
        yield Finding(Mark.WARN, "sizing", f"md/{one.where}", seen, "room for several", to_do)


def _download(one: Ours, pool: Pool, plan: PlanStatus) -> Iterable[Finding]:
    """Each pod downloads the whole checkpoint into its node's ephemeral storage."""
    if not plan.weight_bytes:
        return
    small = [
        node.metadata.name
        for node in pool.nodes
        if 0 < facts_of(node).allocatable.get("ephemeral-storage", 0.0) < plan.weight_bytes
    ]
    if small:
        seen = (
            f"weights of {plan.weight_bytes / 1e9:.0f} GB are downloaded by each pod, and {some(small)} have less disk"
        )
        to_do = "put the model on a PersistentVolumeClaim (docs/install.md), which also loads faster the next time"
        mark = Mark.FAIL if len(small) == len(pool.nodes) else Mark.WARN
        yield Finding(mark, "storage", f"md/{one.where}", seen, "ephemeral storage for all of them", to_do)


def _claim(one: Ours, source: PersistentVolumeClaimSource, pods: int, claims: Listed[Claim]) -> Iterable[Finding]:
    if claims.unseen:
        return
    namespace = one.metadata.namespace
    subject = f"pvc/{source.claim_name} -n {namespace}"
    claim = next((c for c in claims if (c.metadata.namespace, c.metadata.name) == (namespace, source.claim_name)), None)
    if claim is None:
        seen = f"md/{one.metadata.name} reads it, and it is not there"
        yield Finding(Mark.FAIL, "storage", subject, seen, "a claim with the model", "make it; see docs/install.md")
        return
    if claim.status.phase != "Bound":
        to_do = f"`kubectl describe {subject}`; with WaitForFirstConsumer a first pod binds it"
        seen = f"{claim.status.phase or 'no phase'}: no volume is bound to it"
        yield Finding(Mark.FAIL, "storage", subject, seen, "Bound", to_do)
    if pods > 1 and not _MANY_READERS.intersection(claim.spec.access_modes):
        seen = f"{', '.join(claim.spec.access_modes)}, and {pods} pods on several nodes read it"
        to_do = "use a class of volumes that many nodes can read, or one claim a pool"
        yield Finding(Mark.WARN, "storage", subject, seen, "ReadOnlyMany or ReadWriteMany", to_do)


def _image_volume(one: Ours, version: str) -> Iterable[Finding]:
    numbers = version_numbers(version)
    if numbers is not None and numbers < IMAGE_VOLUMES_SINCE:
        wanted = ".".join(map(str, IMAGE_VOLUMES_SINCE))
        seen = f"its model is an OCI image, and Kubernetes {version} mounts images only with the gate ImageVolume"
        to_do = "switch the gate on in API server and kubelets, or use a PersistentVolumeClaim"
        yield Finding(Mark.WARN, "storage", f"md/{one.where}", seen, f"{wanted} or newer", to_do)


def _shm(one: Ours, pool: AcceleratorPoolSpec, template: Mapping[str, Any] | None) -> Iterable[Finding]:
    """A pod template that makes `/dev/shm` small, or a memory limit that it must fit under."""
    for given in (pool.pod_template, template):
        spec = (given or {}).get("spec") or {}
        for volume in spec.get("volumes") or ():
            limit = ((volume or {}).get("emptyDir") or {}).get("sizeLimit") if volume.get("name") == "shm" else None
            if limit is not None and _bytes(limit) < LEAST_SHM_BYTES:
                to_do = "raise the volume's emptyDir.sizeLimit, or take it out of the podTemplate"
                seen = f"the memory volume shm is limited to {limit}"
                yield Finding(Mark.WARN, "sizing", f"md/{one.where}", seen, "1Gi or more (not measured)", to_do)
        for container in spec.get("containers") or ():
            memory = ((container.get("resources") or {}).get("limits") or {}).get("memory")
            if container.get("name") == ENGINE_CONTAINER and memory is not None and pool.devices.resource is not None:
                to_do = "count /dev/shm and the loading of weights in, or set no limit of memory"
                seen = f"podTemplate limits the engine's memory to {memory}, and what is in /dev/shm counts towards it"
                yield Finding(Mark.NOTE, "sizing", f"md/{one.where}", seen, to_do=to_do)


def _bytes(quantity: str | float) -> float:
    try:
        return parse_quantity(quantity)
    except HanmaruError:
        return float("inf")
