"""How many gateway replicas there shall be on a cluster: one on each gateway node, and Kubernetes says how many nodes.

Serve's controller asks `replicas_on_nodes` in every round of its loop. Scaling by load is not decided here: Serve sees
no request of ours (decision 0003), so pods are what scales (decision 0012).
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve.config import AutoscalingContext

from hanmaru_gateway.ray_start import NODE_RESOURCE

MAX_NODES = 1000
SHRINK_DELAY_S = 30.0
"""How long nodes must be missing. A restarted head sees them come back one by one, and ends nothing meanwhile."""


def replicas_on_nodes(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: the wanted number of replicas, and what to remember until the next round."""
    nodes = int(ray.cluster_resources().get(NODE_RESOURCE, 0))
    wanted, since = next_target(
        nodes=nodes,
        running=context.current_num_replicas,
        target=context.target_num_replicas,
        now_s=context.current_time or 0.0,
        missing_since_s=context.policy_state.get("missing_since_s"),
    )
    return wanted, {"missing_since_s": since}


def next_target(
    *, nodes: int, running: int, target: int, now_s: float, missing_since_s: float | None
) -> tuple[int, float | None]:
    """The new target, and since when it would have been lower.

    It grows at once. It shrinks late and never below what runs: a node that leaves takes its replica along by itself,
    and until Serve has seen both, a lower target would end somebody else's.
    """
    wanted = max(nodes, running)
    if wanted >= target:
        return wanted, None
    if missing_since_s is None:
        return target, now_s
    if now_s - missing_since_s < SHRINK_DELAY_S:
        return target, missing_since_s
    return wanted, None
