"""`python -m hanmaru_cluster build` builds the programs; `… up` runs a control plane until Ctrl-C."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import threading

from hanmaru_cluster.build import find_programs
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes


def main() -> None:
    """Read the command line and carry it out."""
    parser = argparse.ArgumentParser(prog="python -m hanmaru_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build or find the programs, and print where they are")
    up = commands.add_parser("up", help="run a control plane, and print KUBECONFIG=…")
    up.add_argument("--nodes", type=int, default=2, help="nodes with 8 devices nvidia.com/gpu each (default: 2)")
    chosen = parser.parse_args()
    if chosen.command == "build":
        for name, path in dataclasses.asdict(find_programs()).items():
            print(f"{name:24} {path}")
    else:
        _up(chosen.nodes)


def _up(node_count: int) -> None:
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: asked.set())
    with ControlPlane() as plane, Nodes(plane.api) as nodes:
        nodes.add(node_count, capacity={"nvidia.com/gpu": "8"})
        print(f"KUBECONFIG={plane.kubeconfig}", flush=True)
        asked.wait()


if __name__ == "__main__":
    main()
