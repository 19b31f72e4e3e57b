"""How each node's containerd is told to live beside others on one machine: its file and its command line; pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hanmaru_cluster.build import NodePrograms
from hanmaru_cluster.roles import NodeLayout

PAUSE_IMAGE = "localhost/hanmaru-test/pause:1"
_RUNTIME = "plugins.'io.containerd.cri.v1.runtime'"


def config(node: NodeLayout, *, network_plugins: Path, may_lower_oom_scores: bool) -> str:
    """The file (TOML). A process without CAP_SYS_RESOURCE must not lower OOM scores: runc would fail, saying "EOF"."""
    return f"""
version = 4
root = '{node.data}/containerd'
state = '{node.sockets}/containerd'
imports = []

[plugins.'io.containerd.server.v1.grpc']
  address = '{node.containerd_socket}'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '{node.containerd_socket}.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
  path = '{node.data}/opt'
# Binds one socket for the whole machine.
[plugins.'io.containerd.nri.v1.nri']
  disable = true
# What it holds is thrown away.
[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE_IMAGE}'
[{_RUNTIME}]
  restrict_oom_score_adj = {str(not may_lower_oom_scores).lower()}
[{_RUNTIME}.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[{_RUNTIME}.containerd.runtimes.runc.options]
  SystemdCgroup = false
[{_RUNTIME}.cni]
  bin_dirs = ['{network_plugins}']
  conf_dir = '{network_folder(node)}'
"""


def network_folder(node: NodeLayout) -> Path:
    """Holds `network_config()` and nothing else."""
    return node.folder / "network"


def network_config(node: NodeLayout) -> str:
    """A bridge on the node, whose pods have addresses of the node's range. No host ports, no NetworkPolicies."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": node.pod_range}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(node.data / "addresses"),
    }
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})


def argv(programs: NodePrograms, file: Path) -> list[str]:
    """Starts it with the file that holds `config()`."""
    return [str(programs.containerd), "--config", str(file), "--log-level", "warn"]


def ctr(programs: NodePrograms, node: NodeLayout, *arguments: str) -> list[str]:
    """Containerd's own client, on what Kubernetes sees."""
    return [str(programs.ctr), "--address", str(node.containerd_socket), "--namespace", "k8s.io", *arguments]
