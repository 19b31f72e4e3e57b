"""Builds the programs and runs clusters by hand: `python -m hanmaru_cluster build`, `… up`, `… real up`.

`up` is a control plane with imitated nodes, which needs no root; `real` one with real nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import time

from hanmaru_cluster import records
from hanmaru_cluster.build import find_helm, find_node_programs, find_programs
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_cluster.real import TWO_NODES, RealCluster
from hanmaru_cluster.roles import NodeRole

DOWN_DEADLINE_S = 30.0
LOOK_S = 0.2


def main() -> None:
    """Read the command line and carry it out."""
    parser = argparse.ArgumentParser(prog="python -m hanmaru_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build or find the programs, and print where they are")
    build.add_argument("--real", action="store_true", help="also those of real nodes, and helm")
    up = commands.add_parser("up", help="run a control plane, and print KUBECONFIG=…")
    up.add_argument("--nodes", type=int, default=2, help="nodes with 8 devices nvidia.com/gpu each (default: 2)")
    real = commands.add_parser("real", help="clusters with real nodes").add_subparsers(dest="action", required=True)
    real_up = real.add_parser("up", help="run one until Ctrl-C or `real down`, and print KUBECONFIG=…")
    real_up.add_argument(
        "--node",
        type=_role,
        action="append",
        metavar="NAME[,RESOURCE=AMOUNT]…",
        help="such as a,nvidia.com/gpu=8; once for each node (default: node-a and node-b without devices)",
    )
    real.add_parser("list", help="print the clusters of this machine")
    down = real.add_parser("down", help="end what `real up` started, and remove what killed ones left")
    down.add_argument("names", nargs="*", metavar="NAME", help="only these, whoever started them")
    chosen = parser.parse_args()
    try:
        _carry_out(chosen)
    except RuntimeError as error:
        sys.exit(str(error))


def _carry_out(chosen: argparse.Namespace) -> None:
    match chosen.command, getattr(chosen, "action", ""):
        case "build", _:
            _build(with_nodes=chosen.real)
        case "up", _:
            _up(chosen.nodes)
        case "real", "up":
            _real_up(chosen.node)
        case "real", "list":
            _real_list()
        case "real", "down":
            _real_down(chosen.names)


def _role(text: str) -> NodeRole:
    name, *resources = text.split(",")
    return NodeRole(name, dict(resource.split("=", 1) for resource in resources))


def _build(*, with_nodes: bool) -> None:
    paths = dataclasses.asdict(find_programs())
    if with_nodes:
        paths |= {**dataclasses.asdict(find_node_programs()), "helm": find_helm()}
    for name, path in paths.items():
        print(f"{name:24} {path}")


def _up(node_count: int) -> None:
    asked = _interruptions()
    with ControlPlane() as plane, Nodes(plane.api) as nodes:
        nodes.add(node_count, capacity={"nvidia.com/gpu": "8"})
        print(f"KUBECONFIG={plane.kubeconfig}", flush=True)
        while not asked:
            time.sleep(LOOK_S)


def _real_up(roles: list[NodeRole] | None) -> None:
    asked = _interruptions()
    with RealCluster(roles or TWO_NODES, purpose=records.BY_HAND) as cluster:
        print(f"KUBECONFIG={cluster.kubeconfig}", flush=True)
        while cluster.is_alive() and not asked:
            time.sleep(LOOK_S)


def _real_list() -> None:
    for record in records.known():
        state = f"started by process {record.owner}" if records.is_alive(record) else "dead: `real down` clears it"
        print(f"{record.name}  {record.purpose}, {state}  KUBECONFIG={record.folder / 'admin.kubeconfig'}")


def _real_down(names: list[str]) -> None:
    ending = [record for record in records.known() if _is_meant(record, names)]
    for record in ending:
        if records.is_alive(record) and record.keeper:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.keeper, signal.SIGTERM)
    deadline_s = time.monotonic() + DOWN_DEADLINE_S
    while still := [record.name for record in ending if records.is_alive(record)]:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"still there after {DOWN_DEADLINE_S:.0f} s: {', '.join(still)}")
        time.sleep(0.1)
    records.sweep()


def _is_meant(record: records.Record, names: list[str]) -> bool:
    return record.name in names if names else record.purpose == records.BY_HAND


def _interruptions() -> list[int]:
    """Of Ctrl-C and SIGTERM, as they come. No Event: its lock may be held when a handler runs."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: asked.append(number))
    return asked


if __name__ == "__main__":
    main()
