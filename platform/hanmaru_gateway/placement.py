"""How many gateway replicas there shall be on a cluster: one on each gateway node, and Kubernetes says how many nodes.

Serve's controller asks in every round of its loop, through `deployment`. Scaling by load is not decided here: Serve
sees no request of ours (decision 0003), so pods are what scales (decision 0012).
"""

from __future__ import annotations

SHRINK_DELAY_S = 30.0
"""How long nodes must be missing. A restarted head sees them come back one by one, and ends nothing meanwhile."""


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
