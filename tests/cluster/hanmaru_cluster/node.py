"""One real node of a running cluster: starts its containerd, kubelet and kube-proxy, and kills what faults want killed.

`real` makes one for each role. Order across nodes, and what is of the whole cluster, is there.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from hanmaru_cluster import cgroups, containerd, kubelet, machine
from hanmaru_cluster.build import NodePrograms
from hanmaru_cluster.flags import Layout
from hanmaru_cluster.inside import COMMAND_DEADLINE_S, Inside, in_network
from hanmaru_cluster.processes import Processes
from hanmaru_cluster.roles import NodeLayout

IMPORT_DEADLINE_S = 600.0
"""A gigabyte takes ten seconds on an idle machine."""


class Node:
    """The programs of one node."""

    def __init__(
        self, layout: NodeLayout, cluster: Layout, programs: NodePrograms, processes: Processes, inside: Inside
    ) -> None:
        self.layout = layout
        self._cluster = cluster
        self._programs = programs
        self._processes = processes
        self._inside = inside

    @property
    def kubelet(self) -> str:
        """Name of the process."""
        return f"{self.layout.name}-kubelet"

    @property
    def containerd(self) -> str:
        """Name of the process."""
        return f"{self.layout.name}-containerd"

    def start_containerd(self) -> None:
        """Start it; `import_image` can be asked as soon as `has_containerd`."""
        layout = self.layout
        network = containerd.network_folder(layout)
        network.mkdir(parents=True, exist_ok=True)
        (network / "pods.conflist").write_text(containerd.network_config(layout))
        text = containerd.config(
            layout, network_plugins=machine.network_plugins(), may_lower_oom_scores=machine.may_lower_oom_scores()
        )
        config = self._write("containerd.toml", text)
        path = f"{self._programs.containerd_shim_runc_v2.parent}:{os.environ['PATH']}"
        self._start(self.containerd, containerd.argv(self._programs, config), {"PATH": path})

    def has_containerd(self) -> bool:
        """Whether containerd answers."""
        try:
            self._inside.run(containerd.ctr(self._programs, self.layout, "version"))
        except RuntimeError:
            return False
        return True

    def import_image(self, archive: Path) -> None:
        """Make the images of a docker or OCI archive known to the node, by the names in it. Raises RuntimeError."""
        command = containerd.ctr(self._programs, self.layout, "images", "import", str(archive.resolve()))
        self._inside.run(command, timeout_s=max(IMPORT_DEADLINE_S, COMMAND_DEADLINE_S))

    def start_kubelet(self) -> None:
        """Start it; it makes its Node ready, or takes up the one that is there."""
        has_v1 = cgroups.has_version_1(cgroups.mounted())
        config = kubelet.config(self.layout, self._cluster, has_cgroup_v1=has_v1)
        file = self._write("kubelet.json", json.dumps(config))
        self._start(self.kubelet, kubelet.argv(self._programs, self.layout, self._cluster, file), {})

    def start_proxy(self) -> None:
        """Start it; Services have addresses on the node from then on."""
        file = self._write("kube-proxy.json", json.dumps(kubelet.proxy_config(self.layout.name, self._cluster)))
        self._start(f"{self.layout.name}-kube-proxy", kubelet.proxy_argv(self._programs, file), {})

    def kill_kubelet(self) -> None:
        """SIGKILL; containers go on."""
        self._processes.kill(self.kubelet)

    def kill_containers(self) -> int:
        """SIGKILL to every process of every pod on the node; how many that were."""
        return _kill(cgroups.processes_in(self.layout.cgroup))

    def kill_container(self, container_id: str) -> int:
        """SIGKILL to every process of one container; how many that were."""
        return _kill(cgroups.processes_in(self.layout.cgroup, leaf=container_id))

    def _start(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._processes.start(name, in_network(self.layout.name, argv), environ=environ)

    def _write(self, name: str, text: str) -> Path:
        file = self.layout.folder / name
        file.write_text(text)
        return file


def _kill(pids: set[int]) -> int:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # ended meanwhile
            continue
    return len(pids)
