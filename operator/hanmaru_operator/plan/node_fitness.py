"""Which nodes can carry a pod of a replica, and why others never can. Pure.

Reads what device plugins and GPU feature discovery say of a node. A node that is merely full, cordoned or not ready is
fit: room is counted elsewhere, and it comes back. NVIDIA's labels as k8s-device-plugin 0.17 documents them; no real
cluster has been seen by this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from hanmaru_operator.plan.engine_pool import NVIDIA_PREFIX, EnginePool
from hanmaru_operator.plan.refusal import Reason, Refusal
from hanmaru_operator.types import NodeFacts

MIG_PREFIX = f"{NVIDIA_PREFIX}mig-"
SHARED_RESOURCE = f"{NVIDIA_PREFIX}gpu.shared"
MEMORY_TOLERANCE = 0.95
"""A card of 80 GB shows as 81,920 or as 81,559 MiB, depending on the driver."""


def pool_refusal(pool: EnginePool) -> Refusal | None:
    """A pool whose very resource is a part of a device."""
    if pool.resource.startswith(MIG_PREFIX):
        return Refusal(
            Reason.MIG_SLICES, f"{pool.resource} is a slice of a GPU; a replica needs whole ones: use nvidia.com/gpu"
        )
    if pool.resource.endswith(".shared"):
        return Refusal(
            Reason.SHARED_DEVICES,
            f"{pool.resource} is shared in time or by MPS: less memory than so many devices have; use whole GPUs",
        )
    return None


def node_refusal(node: NodeFacts, pool: EnginePool, ranks_per_pod: int) -> Refusal | None:
    """Why this node can never carry a pod with so many ranks; None when it can."""
    if pool.resource.startswith(NVIDIA_PREFIX):
        found = _mig(node) or _shared(node, pool.resource) or _smaller(node, pool)
        if found is not None:
            return found
    wanted = ranks_per_pod * pool.devices_per_rank
    offered = int(node.allocatable.get(pool.resource, 0))
    if offered < wanted:
        healthy = pool.ranks_per_node * pool.devices_per_rank
        return Refusal(
            Reason.FEWER_DEVICES,
            f"node {node.name} offers {offered} of {healthy} {pool.resource} and a pod needs {wanted}; repair the node,"
            " or lower devices.perNode if it never has more",
        )
    return None


def fit_nodes(
    nodes: Sequence[NodeFacts], pool: EnginePool, ranks_per_pod: int
) -> tuple[tuple[NodeFacts, ...], tuple[Refusal, ...]]:
    """Nodes that can carry such a pod, and why the others cannot."""
    judged = [(node, node_refusal(node, pool, ranks_per_pod)) for node in nodes]
    return tuple(node for node, why in judged if why is None), tuple(why for _, why in judged if why is not None)


def _mig(node: NodeFacts) -> Refusal | None:
    """`mig.strategy` alone says nothing: NVIDIA's operator sets it to `single` on whole GPUs as well."""
    labels = node.labels
    product, strategy = labels.get("nvidia.com/gpu.product", ""), labels.get("nvidia.com/mig.strategy", "")
    config = labels.get("nvidia.com/mig.config", "")
    seen = [name for name, count in node.allocatable.items() if count and name.startswith(MIG_PREFIX)]
    if "-MIG-" in product:
        seen = [product]
    elif strategy and "nvidia.com/gpu.slices.gi" in labels:
        seen = [f"mig.strategy={strategy} with gpu.slices.gi={labels['nvidia.com/gpu.slices.gi']}"]
    elif not seen and strategy == "mixed":
        seen = [
            name for name, count in labels.items()
            if name.startswith(MIG_PREFIX) and name.endswith(".count") and count not in ("", "0")
        ]  # fmt: skip
    if not seen and config not in ("", "all-disabled"):
        seen = [f"mig.config={config}"]
    if not seen:
        return None
    return Refusal(
        Reason.MIG_SLICES,
        f"node {node.name} is cut into MIG slices ({', '.join(sorted(seen)[:3])}); disable MIG on it"
        " (nvidia.com/mig.config=all-disabled) or leave it out of the pool",
    )


def _shared(node: NodeFacts, resource: str) -> Refusal | None:
    labels = node.labels
    strategy = labels.get("nvidia.com/gpu.sharing-strategy", "none")
    replicas = _whole(labels.get("nvidia.com/gpu.replicas"))
    real = _whole(labels.get("nvidia.com/gpu.count"))
    offered = int(node.allocatable.get(resource, 0))
    if strategy not in ("", "none"):
        seen = f"sharing-strategy={strategy}"
    elif labels.get("nvidia.com/gpu.product", "").endswith("-SHARED"):
        seen = labels["nvidia.com/gpu.product"]
    elif replicas is not None and replicas > 1:
        seen = f"gpu.replicas={replicas}"
    elif node.allocatable.get(SHARED_RESOURCE):
        seen = "it offers gpu.shared"
    elif real and offered > real:
        seen = f"it offers {offered} and has {real}"
    else:
        return None
    return Refusal(
        Reason.SHARED_DEVICES,
        f"node {node.name} shares its GPUs in time or by MPS ({seen}): it advertises more devices than exist; turn"
        " sharing off there or leave it out of the pool",
    )


def _smaller(node: NodeFacts, pool: EnginePool) -> Refusal | None:
    memory_mib = _whole(node.labels.get("nvidia.com/gpu.memory"))
    if not memory_mib or memory_mib << 20 >= pool.device_bytes * MEMORY_TOLERANCE:
        return None
    return Refusal(
        Reason.SMALLER_DEVICES,
        f"node {node.name} has GPUs of {memory_mib} MiB and the pool says {pool.device_bytes >> 20} MiB; correct"
        " devices.memory or the pool's nodes",
    )


@lru_cache(maxsize=1024)  # nodes of a pool say the same few numbers: a seventh of the time of a plan
def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None
