"""A Kubernetes cluster with real nodes on one machine: kubelets, containerd, runc, kube-proxy, a name server.

Tests enter a `RealCluster`, people use `python -m hanmaru_cluster real up`. This module has the order of things; what
each program is told is in the modules beside it. Everything runs in namespaces that end with it (`keeper`), and the API
server is reached from outside through one loopback port (`relay`). Root and Linux are needed; `machine` says what else.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanmaru_cluster import dns, kubelet, machine, network, records, relay, static_image
from hanmaru_cluster.api import ApiClient
from hanmaru_cluster.build import NodePrograms, find_node_programs
from hanmaru_cluster.containerd import PAUSE_IMAGE
from hanmaru_cluster.control_plane import ControlPlane, Ground
from hanmaru_cluster.flags import Layout
from hanmaru_cluster.inside import COMMAND_DEADLINE_S, Inside, in_network
from hanmaru_cluster.node import Node
from hanmaru_cluster.ports import free_port
from hanmaru_cluster.processes import Processes
from hanmaru_cluster.roles import CONTROL_PLANE, CONTROL_PLANE_ADDRESS, INSIDE, MAX_NODES, NodeLayout, NodeRole

READY_DEADLINE_S = 90.0
"""Seven seconds on two idle cores; a test run may share them."""
HEARTBEAT_TIMEOUT_S = 10
"""A node that is silent for so long is NotReady (50 s in a usual cluster). Kubelets speak four times in it, and on a
machine that computes on all cores they may come seconds late."""
_APISERVER_PORT, _ETCD_PORT, _ETCD_PEER_PORT = 6443, 2379, 2380
_NODES_GROUP = "system:nodes"
_RELAY, _DNS, _PROXY = "relay", "coredns", "kube-proxy"
TWO_NODES = (NodeRole("node-a"), NodeRole("node-b"))


class RealCluster:
    """A running cluster; a context manager, to be entered once. Its methods may be called from any thread.

    `kubeconfig`, `api` and `kubectl` are an administrator's, and work from the machine's ordinary network.
    """

    def __init__(self, nodes: Sequence[NodeRole] = TWO_NODES, *, purpose: str = "tests") -> None:
        """Nothing is started yet. Raises RuntimeError where this machine cannot have such a cluster."""
        assert 0 < len(nodes) <= MAX_NODES
        machine.check()
        self._roles = {role.name: role for role in nodes}
        self._purpose = purpose
        self._images: set[tuple[Path, int, int]] = set()

    @property
    def api(self) -> ApiClient:
        """Speaks as the administrator."""
        return self._plane.api

    @property
    def kubeconfig(self) -> Path:
        """Of the administrator."""
        return self._plane.kubeconfig

    @property
    def nodes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._roles)

    @property
    def plane(self) -> ControlPlane:
        """Etcd, the API server and the controllers, with faults of their own."""
        return self._plane

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What the real kubectl prints. Raises RuntimeError with its words when it fails."""
        return self._plane.kubectl(*arguments, stdin=stdin)

    def __enter__(self) -> Self:
        """Start everything; returns when all nodes are Ready. Raises RuntimeError with the log of what failed."""
        programs = find_node_programs()
        records.sweep()
        folder = Path(tempfile.mkdtemp(prefix=records.PREFIX))
        record = records.Record(folder, self._purpose, owner=os.getpid())
        records.write(record)
        self._processes = Processes(folder, ["hanmaru_cluster.keeper", str(record.file), *self._roles])
        try:
            self._start(record, programs)
        except BaseException:
            self._processes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything at once. Raises RuntimeError when a program had ended by itself, with the end of its log."""
        ended = self._processes.ended() if self.is_alive() else {}
        logs = "\n".join(f"{name} ended with {status}:\n{self._plane.log_end(name)}" for name, status in ended.items())
        self._processes.close()
        if ended and error is None:
            raise RuntimeError(logs)

    def is_alive(self) -> bool:
        """Whether nobody ended it from elsewhere (`python -m hanmaru_cluster real down`)."""
        return self._processes.is_alive()

    def load_image(self, archive: Path) -> None:
        """Make the images of a docker or OCI archive known to every node by the names in it; once for each file.

        Pods need `imagePullPolicy: IfNotPresent`, which is the default unless the tag is `latest`.
        """
        status = archive.stat()
        content = (archive.resolve(), status.st_mtime_ns, status.st_size)
        if content not in self._images:
            self._on_every_node(lambda node: node.import_image(archive))
            self._images.add(content)

    def local_volume(self, name: str, path: Path, *, capacity: str = "20Gi") -> None:
        """Make a PersistentVolume of a folder of this machine, on every node, that nobody can write to.

        A claim asks for it with `volumeName`, `storageClassName: ""` and `ReadOnlyMany`, and pods use the claim with
        `readOnly: true` (else a kubelet that is asked for an `fsGroup` tries to change the files' owner, and fails).
        """
        inner = str(INSIDE / "volumes" / name)
        # The kubelet's remount would undo a read-only bind mount. An overlay without an upper layer stays what it is.
        empty = f"{inner}.empty"
        self._inside.run(["mkdir", "-p", inner, empty])
        layers = f"lowerdir={path.resolve()}:{empty}"
        self._inside.run(["mount", "-t", "overlay", "overlay", "-o", layers, inner])
        hosts = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(self.nodes)}
        spec = {
            "capacity": {"storage": capacity},
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": inner},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hosts]}]}},
        }
        self.api.create("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": spec})

    def set_resource(self, node: str, resource: str, amount: str) -> None:
        """Give a node so much of an extended resource; the kubelet keeps it, also over its own restart."""
        self._amounts[node][resource] = amount
        self._patch_amounts(node)

    def cut(self, node: str) -> None:
        """Take a node off the network; it is NotReady HEARTBEAT_TIMEOUT_S later, and its pods go on unseen."""
        self._inside.run(network.link(self._nodes[node].layout, "down"))

    def restore(self, node: str) -> None:
        """Put a node that was cut back on the network; it is Ready a few seconds later."""
        self._inside.run(network.link(self._nodes[node].layout, "up"))

    def kill_kubelet(self, node: str) -> None:
        """SIGKILL to a node's kubelet; its containers go on, and nobody restarts them."""
        self._nodes[node].kill_kubelet()

    def start_kubelet(self, node: str) -> None:
        """Start a kubelet that was killed, and wait until its node is Ready."""
        self._nodes[node].start_kubelet()
        self._await_ready([node])
        self._patch_amounts(node)

    def kill_pod(self, namespace: str, name: str) -> None:
        """SIGKILL to every process of every container of a pod, as for want of memory. The kubelet may start them anew.

        Raises RuntimeError where none of them runs.
        """
        pod = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        node = self._nodes[pod["spec"]["nodeName"]]
        status = pod.get("status", {})
        containers = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        ids = [str(container.get("containerID", "")).rpartition("/")[2] for container in containers]
        if not sum(node.kill_container(container_id) for container_id in ids if container_id):
            raise RuntimeError(f"pod {namespace}/{name} has no running container")

    def kill_containers(self, node: str) -> None:
        """SIGKILL to every process of every pod on a node, their sandboxes' included."""
        self._nodes[node].kill_containers()

    def run_inside(self, command: Sequence[str], *, timeout_s: float = COMMAND_DEADLINE_S) -> str:
        """What a command prints that runs beside the control plane: it reaches pods, Services and their names.

        Raises RuntimeError with its words when it fails.
        """
        return self._inside.run(command, network=CONTROL_PLANE, timeout_s=timeout_s)

    def inside_argv(self, command: Sequence[str]) -> list[str]:
        """The same as a command line, for who talks to the process while it runs."""
        return self._inside.argv(command, network=CONTROL_PLANE)

    def _start(self, record: records.Record, programs: NodePrograms) -> None:
        self._processes.ended()  # answers when the namespaces are there
        self._inside = Inside(_first_process(record))
        layout = self._layout(record.folder)
        self._nodes = self._make_nodes(record, layout, programs)
        self._amounts = {role.name: dict(role.resources) for role in self._roles.values()}
        self._inside.run(["sh", "-c", network.lay_out([node.layout for node in self._nodes.values()])])
        resolver = record.folder / "resolv.conf"
        resolver.write_text(dns.resolver_config())
        self._inside.run(["sh", "-c", dns.use_resolver_config(resolver)])
        assert layout.relay_port is not None
        argv = relay.argv(layout.relay_port, CONTROL_PLANE, CONTROL_PLANE_ADDRESS, layout.apiserver_port)
        self._processes.start(_RELAY, argv, environ={"PYTHONPATH": str(Path(__file__).parents[1])})
        for node in self._nodes.values():
            node.layout.folder.mkdir()
            node.start_containerd()
        self._plane = ControlPlane(ground=Ground(layout, self._processes, _beside_the_control_plane))
        self._plane.start()
        self._start_nodes(layout, programs)
        self._start_dns(layout, programs)
        archive = static_image.write_archive(programs.pause, PAUSE_IMAGE, record.folder / "pause.tar")
        self._on_every_node(lambda node: self._first_image(node, archive))
        self._await_ready(self.nodes)
        for name in self.nodes:
            self._patch_amounts(name)

    def _layout(self, folder: Path) -> Layout:
        return Layout(
            folder,
            _ETCD_PORT,
            _ETCD_PEER_PORT,
            _APISERVER_PORT,
            HEARTBEAT_TIMEOUT_S,
            address=CONTROL_PLANE_ADDRESS,
            relay_port=free_port(),
        )

    def _make_nodes(self, record: records.Record, layout: Layout, programs: NodePrograms) -> dict[str, Node]:
        layouts = [NodeLayout(name, i + 1, record.folder, record.cgroup) for i, name in enumerate(self._roles)]
        return {node.name: Node(node, layout, programs, self._processes, self._inside) for node in layouts}

    def _start_nodes(self, layout: Layout, programs: NodePrograms) -> None:
        plane = self._plane
        plane.kubeconfig_inside(kubelet.PROXY_USER)
        for name, node in self._nodes.items():
            plane.kubeconfig_inside(kubelet.user(name), [_NODES_GROUP])
            plane.write_pair(f"kubelet-{name}", plane.authority.server(name, [name, node.layout.address]))
            # Made before its kubelet, which may not give itself every label, and would take pods before it had them.
            self.api.create("/api/v1/nodes", _manifest(self._roles[name]))
            node.start_kubelet()
            node.start_proxy()
        # The API server reaches Services too (webhooks do), in the name of a node because it is none itself.
        file = layout.folder / "kube-proxy.json"
        file.write_text(json.dumps(kubelet.proxy_config(self.nodes[0], layout)))
        self._processes.start(_PROXY, _beside_the_control_plane(kubelet.proxy_argv(programs, file)))

    def _start_dns(self, layout: Layout, programs: NodePrograms) -> None:
        self._plane.kubeconfig_inside(dns.DNS_USER)
        for path, manifest in dns.objects():
            self.api.create(path, manifest)
        file = layout.folder / "Corefile"
        file.write_text(dns.corefile(layout))
        self._processes.start(_DNS, _beside_the_control_plane(dns.argv(programs, file)))

    def _first_image(self, node: Node, archive: Path) -> None:
        self._plane.wait_for(node.containerd, node.has_containerd)
        node.import_image(archive)

    def _on_every_node(self, act: Callable[[Node], None]) -> None:
        with ThreadPoolExecutor(len(self._nodes)) as threads:
            list(threads.map(act, self._nodes.values()))

    def _await_ready(self, names: Sequence[str]) -> None:
        deadline_s = time.monotonic() + READY_DEADLINE_S
        for name in names:
            while not _is_ready(self.api.get(f"/api/v1/nodes/{name}")):
                if time.monotonic() > deadline_s:
                    raise RuntimeError(f"{name} is not Ready:\n{self._plane.log_end(self._nodes[name].kubelet)}")
                time.sleep(0.1)

    def _patch_amounts(self, node: str) -> None:
        if amounts := self._amounts[node]:
            status = {"capacity": amounts, "allocatable": amounts}
            self.api.patch(f"/api/v1/nodes/{node}/status", {"status": status})


def _first_process(record: records.Record) -> int:
    """The keeper writes it down a moment after it has started it."""
    deadline_s = time.monotonic() + READY_DEADLINE_S
    while not ((known := records.read(record.file)) and known.init):
        if time.monotonic() > deadline_s:
            raise RuntimeError("the cluster's keeper does not tell its first process")
        time.sleep(0.01)
    return known.init


def _beside_the_control_plane(argv: Sequence[str]) -> list[str]:
    return in_network(CONTROL_PLANE, argv)


def _manifest(role: NodeRole) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": role.name, **role.labels}
    metadata = {"name": role.name, "labels": labels}
    return {"metadata": metadata, "spec": {"taints": [dict(taint) for taint in role.taints]}}


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
