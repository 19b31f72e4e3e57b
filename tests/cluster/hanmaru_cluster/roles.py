"""What a node of a real cluster is to be, and where its things lie: data, from which the other modules make files.

Tests write `NodeRole`s; `real` gives each a number and so a `NodeLayout`. Nothing here touches the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONTROL_PLANE = "control-plane"
"""Names the network namespace of etcd, the API server, the controllers and the name server; it is no node."""
CONTROL_PLANE_ADDRESS = "10.80.0.1"
POD_RANGE = "10.244.0.0/16"
INSIDE = Path("/run/hanmaru")
"""A folder in memory that only the cluster's own processes see: `keeper` hides the machine's `/run` from them."""
DISK = INSIDE / "disk"
"""The same, not in memory."""
MAX_NODES = 100
"""Two network ranges have a number for each node."""


@dataclass(frozen=True, slots=True)
class NodeRole:
    """One node of a real cluster, as a test wants it."""

    name: str
    resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resources on top of what the machine has: `{"nvidia.com/gpu": "8"}`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()
    """As in a Node: `{"key": "nvidia.com/gpu", "effect": "NoSchedule"}`."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Where one node's files, sockets, cgroup and addresses are."""

    name: str
    number: int
    """From 1."""
    cluster: Path
    """The folder of the whole cluster."""
    cgroup_parent: str
    """The cluster's own, `/hanmaru-cluster-…`, as it is called in every hierarchy."""

    @property
    def folder(self) -> Path:
        """What its programs are told."""
        return self.cluster / self.name

    @property
    def data(self) -> Path:
        """What its programs write, images and volumes too; only the cluster's own processes see it."""
        return DISK / self.name

    @property
    def sockets(self) -> Path:
        """A folder with a short name, as the names of sockets end at 107 bytes; only the cluster's processes see it."""
        return INSIDE / self.name

    @property
    def containerd_socket(self) -> Path:
        """Where containerd is spoken to."""
        return self.sockets / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """Below which the kubelet puts its pods."""
        return f"{self.cgroup_parent}/{self.name}"

    @property
    def address(self) -> str:
        """Of the node, on the bridge."""
        return f"10.80.0.{10 + self.number}"

    @property
    def pod_range(self) -> str:
        """The addresses of its pods."""
        return f"10.244.{self.number}.0/24"
