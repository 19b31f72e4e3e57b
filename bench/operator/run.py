"""`make bench-operator`: planning in memory, then the operator on a real control plane with 1,000 deployments.

Prints what it was measured on, what was seen, and one JSON line last. `--only planning` takes a quarter of a minute;
the other part some minutes, most of them until 1,000 deployments have been rolled out for the first time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import planning
import reconciling
from cluster_rig import Size
from hanmaru_testing.machine import machine


def main() -> int:
    # What runs by then is ended on the way out, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    usual = Size()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["planning", "reconciling"])
    parser.add_argument("--deployments", type=int, default=usual.deployments, help="that stay idle")
    parser.add_argument("--nodes", type=int, default=usual.nodes)
    parser.add_argument("--changes", type=int, default=usual.changes)
    parser.add_argument("--logs", type=Path, help="folder that keeps the operator's logs")
    args = parser.parse_args()
    seen = machine()
    summary: dict[str, object] = {}
    if args.only != "reconciling":
        summary |= _planning()
    if args.only != "planning":
        size = Size(args.nodes, args.deployments, min(usual.active, args.changes), args.changes)
        with contextlib.ExitStack() as stack:
            folder = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hanmaru-bench-")))
            summary |= _reconciling(size, folder)
    print(json.dumps({**summary, "machine": seen}))
    return 0


def _planning() -> dict[str, object]:
    found = planning.measure()
    print(f"{planning.DEPLOYMENTS} deployments on {planning.POOLS} pools of {planning.NODES} nodes, in memory")
    print(f"  nodes to pools, once: {found.assign_ms:.1f} ms; {found.planned} plans fit")
    for name, values in (("plan", found.plan_ms), ("decide", found.decide_ms)):
        print(f"  {name}: p50 {quantile(values, 0.5):.3f} ms, p99 {quantile(values, 0.99):.3f} ms a deployment")
    for pools, values in found.by_pools.items():
        print(f"  plan on {pools} pools: p50 {quantile(values, 0.5):.3f} ms")
    return {
        "plan_ms_p50": round(quantile(found.plan_ms, 0.5), 3),
        "decide_ms_p50": round(quantile(found.decide_ms, 0.5), 3),
    }


def _reconciling(size: Size, folder: Path) -> dict[str, object]:
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {words}", file=sys.stderr, flush=True)

    found = reconciling.measure(size, folder, say)
    print(
        f"{size.deployments} idle deployments and {size.active} changed ones, {size.nodes} nodes, a real control plane"
    )
    print(f"  first rollout of all: {found.fill_s:.0f} s, {found.fill_cpu_s:.0f} s of the operator's CPU")
    p50, p99, most = (quantile(found.apply_s, fraction) for fraction in (0.5, 0.99, 1.0))
    print(f"  {size.changes} changes: p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, most {most * 1e3:.0f} ms")
    print(f"  CPU for a change and what follows from it: {found.change_cpu_ms:.0f} ms")
    print(f"  memory: at most {found.rss_mb:.0f} MB, {found.idle_rss_mb:.0f} MB after the changes")
    print(f"  restart: listed after {found.start_s:.1f} s, all looked at after {found.settle_s:.0f} s")
    print(
        f"    {found.settle_cpu_s:.0f} s of CPU, {found.restart_writes} requests that changed {found.restart_changes}"
    )
    print(f"  {reconciling.RESYNCS} resyncs of {found.objects} objects: {found.resync_writes} requests to write,")
    print(f"    {found.resync_changes} objects changed, {found.resync_cpu_s:.1f} s of CPU each")
    return {
        "apply_s_p50": round(p50, 3),
        "apply_s_p99": round(p99, 3),
        "rss_mb": round(found.rss_mb),
        "resync_writes": found.resync_writes,
        "start_s": round(found.start_s, 1),
    }


def quantile(values: Sequence[float], fraction: float) -> float:
    """The value that so many are not above."""
    return sorted(values)[max(0, min(len(values) - 1, round(fraction * len(values)) - 1))]


if __name__ == "__main__":
    sys.exit(main())
