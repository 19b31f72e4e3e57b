"""The network of a real cluster: a namespace for the control plane with a bridge, one for each node, nothing outside.

Pure functions to shell scripts, which `real` runs inside the cluster. The addresses are the same in every cluster:
no packet leaves the namespaces, so two clusters do not meet.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hanmaru_cluster.flags import SERVICE_RANGE
from hanmaru_cluster.inside import in_network
from hanmaru_cluster.roles import CONTROL_PLANE, CONTROL_PLANE_ADDRESS, NodeLayout

_BRIDGE = "nodes"
_NODE_SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
"""A pod's answer to its neighbour on the same bridge must pass kube-proxy's rules as well, to get its address back."""


def lay_out(nodes: Sequence[NodeLayout]) -> str:
    """The script that makes it all."""
    commands = [
        ["mkdir", "-p", "/run/netns"],
        *_namespace(CONTROL_PLANE),
        *_ip(CONTROL_PLANE, f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"),
        *_ip(CONTROL_PLANE, f"address add {CONTROL_PLANE_ADDRESS}/24 dev {_BRIDGE}"),
        # Services are reached from here through kube-proxy's rules, which only apply to what has a route.
        *_ip(CONTROL_PLANE, f"route add {SERVICE_RANGE} dev {_BRIDGE}"),
    ]
    for node in nodes:
        commands += _node(node)
    for node in nodes:
        others = [other.name for other in nodes if other != node]
        for name in (CONTROL_PLANE, *others):
            commands += _ip(name, f"route add {node.pod_range} via {node.address}")
    return "set -eu\n" + "\n".join(shlex.join(command) for command in commands)


def link(node: NodeLayout, state: str) -> list[str]:
    """The command that takes a node's cable out of the bridge (`down`), or puts it in again (`up`)."""
    return _ip(CONTROL_PLANE, f"link set {_port(node)} {state}")[0]


def _node(node: NodeLayout) -> list[list[str]]:
    settings = "; ".join(f"[ ! -e /proc/sys/{name} ] || echo 1 > /proc/sys/{name}" for name in _NODE_SETTINGS)
    return [
        *_namespace(node.name),
        *_ip(CONTROL_PLANE, f"link add {_port(node)} type veth peer name eth0 netns {node.name}"),
        *_ip(CONTROL_PLANE, f"link set {_port(node)} master {_BRIDGE} up"),
        *_ip(node.name, f"address add {node.address}/24 dev eth0", "link set eth0 up"),
        *_ip(node.name, f"route add {SERVICE_RANGE} dev eth0"),
        # What is nowhere is refused at once; without a route back it would be waited for.
        *_ip(node.name, "route add unreachable default"),
        in_network(node.name, ["sh", "-c", settings]),
    ]


def _namespace(name: str) -> list[list[str]]:
    return [["ip", "netns", "add", name], *_ip(name, "link set lo up")]


def _port(node: NodeLayout) -> str:
    """A name on the bridge; the kernel takes 15 bytes."""
    return f"port{node.number}"


def _ip(namespace: str, *words: str) -> list[list[str]]:
    return [["ip", "-netns", namespace, *command.split()] for command in words]
