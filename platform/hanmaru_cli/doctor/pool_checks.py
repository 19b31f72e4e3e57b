"""Pools and their nodes: enough whole, healthy devices, of the size that was said. Pure.

Which node belongs to which pool, and whether it can carry a replica, is the operator's own judgement
(`hanmaru_operator.plan`): the doctor must not think differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec, Toleration
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator.plan.engine_pool import NVIDIA_PREFIX, EnginePool
from hanmaru_operator.plan.node_fitness import node_refusal, pool_refusal
from hanmaru_operator.plan.placement import endures
from hanmaru_operator.plan.pools import PoolClaim, PoolNodes, assign_nodes
from hanmaru_operator.plan.refusal import Reason
from hanmaru_operator.quantity import parse_quantity
from hanmaru_operator.types import NodeFacts, NodeName, PoolName
from pydantic import ValidationError

from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.objects import Node, Ours
from hanmaru_cli.doctor.world import World

LEAST_DRIVER = 580
"""NVIDIA's driver for CUDA 13, which SGLang 0.5.23's torch is built for (NVIDIA: CUDA compatibility, November 2026)."""
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")
_PRODUCT_LABEL = "nvidia.com/gpu.product"
_OF_THE_SYSTEM = ("node.kubernetes.io/",)
"""Taints that the cluster sets itself; they say what `Ready` and `cordoned` say already."""
_PLUGINS = {
    "nvidia.com/gpu": "NVIDIA's GPU operator, or its k8s-device-plugin",
    "furiosa.ai/rngd": "FuriosaAI's device plugin",
    "rebellions.ai/npu": "Rebellions' NPU operator",
}


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool with its nodes."""

    name: str
    spec: AcceleratorPoolSpec
    engine: EnginePool
    nodes: tuple[Node, ...]
    overlapping: Mapping[NodeName, PoolName]

    @property
    def subject(self) -> str:
        """As kubectl names it."""
        return f"ap/{self.name}"


def check_pools(world: World) -> list[Finding]:
    """Every pool, or that there is none."""
    if not world.pools.is_served:
        return []
    if world.pools.unseen:
        return [*world.pools.cannot_look("pool", "AcceleratorPools"), *world.nodes.cannot_look("pool", "nodes")]
    if not world.pools.items:
        to_do = "`kubectl apply` one; charts/hanmaru/examples has some"
        return [Finding(Mark.WARN, "pool", "", "there is no AcceleratorPool: no model can run", "one", to_do)]
    found = world.nodes.cannot_look("pool", "nodes")
    pools, unreadable = read_pools(world)
    found += unreadable
    for pool in pools:
        lines = [*_templates(pool, world)]
        if not world.nodes.unseen:
            lines += [*_resource(pool), *_nodes(pool), *_labels(pool), *_drivers(pool)]
        found += lines or [_all_well(pool)]
    return found


def read_pools(world: World) -> tuple[list[Pool], list[Finding]]:
    """The pools with their nodes, and lines about those that cannot be read."""
    specs: dict[str, tuple[Ours, AcceleratorPoolSpec, EnginePool]] = {}
    unreadable = []
    for one in world.pools:
        name = one.metadata.name
        try:
            spec = AcceleratorPoolSpec.model_validate(one.spec)
            specs[name] = (one, spec, EnginePool.from_spec(name, spec))
        except (ValidationError, HanmaruError) as error:
            seen = f"this hanmaru cannot read it: {str(error).splitlines()[0]}"
            unreadable.append(Finding(Mark.WARN, "pool", f"ap/{name}", seen, to_do="is it newer? Upgrade hanmaru"))
    claims = [
        PoolClaim(PoolName(name), one.metadata.uid, _time(one.metadata.creation_timestamp), spec.nodes.selector_terms)
        for name, (one, spec, _) in specs.items()
    ]
    assigned = assign_nodes(claims, [facts_of(node) for node in world.nodes])
    by_name = {node.metadata.name: node for node in world.nodes}

    def nodes_of(own: PoolNodes) -> tuple[Node, ...]:
        return tuple(by_name[facts.name] for facts in own.nodes)

    pools = [
        Pool(name, spec, engine, nodes_of(assigned[PoolName(name)]), assigned[PoolName(name)].overlapping)
        for name, (_, spec, engine) in specs.items()
    ]
    return pools, unreadable


def facts_of(node: Node) -> NodeFacts:
    """A node in the operator's words. A quantity that is none counts as absent."""
    allocatable = {}
    for name, text in node.status.allocatable.items():
        try:
            allocatable[name] = parse_quantity(text)
        except HanmaruError:
            continue
    return NodeFacts(
        name=NodeName(node.metadata.name),
        labels=node.metadata.labels,
        allocatable=allocatable,
        is_ready=node.is_ready,
        is_schedulable=not node.spec.unschedulable,
        taints=tuple((taint.key, taint.value, taint.effect) for taint in node.spec.taints),
    )


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _all_well(pool: Pool) -> Finding:
    offered = sum(int(facts_of(node).allocatable.get(pool.engine.resource, 0)) for node in pool.nodes)
    return ok("pool", f"{len(pool.nodes)} nodes offer {offered} {pool.engine.resource}", pool.subject)


def _resource(pool: Pool) -> Iterable[Finding]:
    """Without any node, or without any device on them, nothing else needs saying."""
    if pool.overlapping:
        seen = f"older pools have nodes that it selects: {some(pool.overlapping)}"
        yield Finding(Mark.WARN, "pool", pool.subject, seen, "each node in one pool", "narrow nodes.selectorTerms")
    if (refusal := pool_refusal(pool.engine)) is not None:
        yield Finding(Mark.FAIL, "pool", pool.subject, refusal.message)
    if not pool.nodes:
        keys = {requirement.key for term in pool.spec.nodes.selector_terms for requirement in term.match_expressions}
        seen = "no node matches nodes.selectorTerms" + (", or older pools have them all" if pool.overlapping else "")
        to_do = f"compare `kubectl get nodes -L {','.join(sorted(keys))}` with the terms; is the labels' maker running?"
        yield Finding(Mark.FAIL, "pool", pool.subject, seen, "at least one node", to_do)


def _nodes(pool: Pool) -> Iterable[Finding]:
    facts = {node.metadata.name: facts_of(node) for node in pool.nodes}
    resource = pool.engine.resource
    if facts and not any(one.allocatable.get(resource) for one in facts.values()):
        maker = _PLUGINS.get(resource, f"the device plugin of {resource}")
        seen = f"none of its {len(facts)} nodes offers {resource}"
        to_do = f"install {maker}, and look at its pods' logs on those nodes"
        yield Finding(Mark.FAIL, "devices", pool.subject, seen, f"{pool.spec.devices.per_node} a node", to_do)
        return
    if away := [name for name, one in facts.items() if not one.is_ready]:
        yield Finding(
            Mark.WARN, "nodes", pool.subject, f"not ready: {some(away)}", "Ready",
            f"`kubectl describe node {away[0]}`; its kubelet has stopped reporting",
        )  # fmt: skip
    if cordoned := [name for name, one in facts.items() if not one.is_schedulable]:
        yield Finding(
            Mark.WARN, "nodes", pool.subject, f"cordoned or drained: {some(cordoned)}", "schedulable",
            f"when the maintenance is over: `kubectl uncordon {' '.join(sorted(cordoned)[:5])}`",
        )  # fmt: skip
    yield from _unfit([one for one in facts.values() if one.is_ready], pool)
    if tainted := [name for name, one in facts.items() if _untolerated(one, pool.spec.nodes.tolerations)]:
        taints = {taint for name in tainted for taint in _untolerated(facts[name], pool.spec.nodes.tolerations)}
        yield Finding(
            Mark.FAIL, "nodes", pool.subject, f"taints that its pods do not endure ({some(taints)}): {some(tainted)}",
            "a toleration", "add them to the pool's nodes.tolerations, or take the taints away",
        )  # fmt: skip


def _unfit(facts: Sequence[NodeFacts], pool: Pool) -> Iterable[Finding]:
    """Nodes whose devices are missing, cut up, shared or smaller; the operator's own words for the first of a sort."""
    by_reason: dict[Reason, list[str]] = {}
    for one in facts:
        if (refusal := node_refusal(one, pool.engine, pool.engine.ranks_per_node)) is not None:
            by_reason.setdefault(refusal.reason, []).append(refusal.message)
    for reason, messages in by_reason.items():
        more = f" (and {len(messages) - 1} nodes more)" if len(messages) > 1 else ""
        mark = Mark.FAIL if len(messages) == len(facts) else Mark.WARN
        seen, _, to_do = messages[0].partition("; ")
        yield Finding(mark, "devices", pool.subject, f"{reason}: {seen}{more}", "whole devices, all of them", to_do)


def _untolerated(node: NodeFacts, tolerations: Sequence[Toleration]) -> list[str]:
    return [
        f"{key}={value}:{effect}" if value else f"{key}:{effect}"
        for key, value, effect in node.taints
        if effect in ("NoSchedule", "NoExecute")
        and not key.startswith(_OF_THE_SYSTEM)
        and not any(endures(one, key, value, effect) for one in tolerations)
    ]


def _labels(pool: Pool) -> Iterable[Finding]:
    """Labels that groups are placed by, and that devices are judged by."""
    key = pool.spec.topology.domain_key
    if key and (without := [node.metadata.name for node in pool.nodes if key not in node.metadata.labels]):
        yield Finding(
            Mark.WARN, "nodes", pool.subject, f"without the label {key} of topology.domainKey: {some(without)}",
            "the label on each node", "label them: a group of several pods stays inside one value of it",
        )  # fmt: skip
    if pool.engine.resource.startswith(NVIDIA_PREFIX) and pool.nodes:
        bare = [node.metadata.name for node in pool.nodes if _PRODUCT_LABEL not in node.metadata.labels]
        if bare:
            yield Finding(
                Mark.WARN, "devices", pool.subject,
                f"no GPU feature discovery on {some(bare)}: MIG, sharing and memory cannot be judged",
                f"the label {_PRODUCT_LABEL}", "turn GPU feature discovery on beside the device plugin",
            )  # fmt: skip


def _drivers(pool: Pool) -> Iterable[Finding]:
    if not pool.engine.resource.startswith(NVIDIA_PREFIX):
        return
    old = {}
    for node in pool.nodes:
        text = next((node.metadata.labels[name] for name in _DRIVER_LABELS if name in node.metadata.labels), "")
        if text.isdecimal() and int(text) < LEAST_DRIVER:
            old[node.metadata.name] = text
    if old:
        yield Finding(
            Mark.WARN, "driver", pool.subject, f"NVIDIA driver {some(set(old.values()))} on {some(old)}",
            f"{LEAST_DRIVER} or newer, for CUDA 13", "upgrade the driver, or give the pool an engine.image of CUDA 12",
        )  # fmt: skip


def _templates(pool: Pool, world: World) -> Iterable[Finding]:
    """The pod template's runtime class."""
    if world.runtime_classes.unseen:
        return
    there = {one.metadata.name for one in world.runtime_classes}
    wanted = ((pool.spec.pod_template or {}).get("spec") or {}).get("runtimeClassName")
    if wanted and wanted not in there:
        yield Finding(
            Mark.FAIL, "runtime", pool.subject, f"podTemplate asks for the RuntimeClass {wanted}",
            f"one of: {some(there) or 'none is here'}", "correct its name, or make it",
        )  # fmt: skip
    elif not wanted and "nvidia" in there and pool.engine.resource.startswith(NVIDIA_PREFIX):
        yield Finding(
            Mark.NOTE, "runtime", pool.subject, "there is a RuntimeClass nvidia, and the pool does not ask for it",
            to_do="if containers see no GPU, nvidia is not the nodes' default runtime: "
            "set podTemplate.spec.runtimeClassName: nvidia",
        )  # fmt: skip
