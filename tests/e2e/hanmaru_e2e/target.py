"""The cluster that the suite runs on: two real nodes of this machine, or whatever KUBECONFIG names.

`conftest` opens one for a run. On somebody else's there are no node faults, and images come from a registry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanmaru_cluster import machine
from hanmaru_cluster.build import find_helm, find_programs
from hanmaru_cluster.images import archives, reference
from hanmaru_cluster.real import RealCluster
from hanmaru_cluster.roles import NodeRole

from hanmaru_e2e.kube import Kube, Manifest
from hanmaru_e2e.progress import Progress

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "checkpoints/tiny-k-exaone"
ENV_KUBECONFIG = "HANMARU_E2E_KUBECONFIG"
ENV_REGISTRY = "HANMARU_E2E_REGISTRY"
ENV_MODEL_VOLUMES = "HANMARU_E2E_MODEL_VOLUMES"
"""On somebody else's cluster: PersistentVolumes with the tiny checkpoint have these names with `-NAMESPACE` behind."""
IMAGES = ("operator", "gateway", "worker", "redis", "collector", "client", "checkpoint")
SYSTEM_NODE, OTHER_NODE = "node-a", "node-b"
"""Redis, the Ray head and the operator are on the first; the second is cut off and drained."""
ENVIRONMENT_VOLUME, CHECKPOINT_VOLUME = "environment", "tiny-k-exaone"
"""Names of claims, as the example wants the second."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to install, with what."""

    kube: Kube
    helm: Path
    images: Mapping[str, str]
    """Reference of each of IMAGES."""
    own: RealCluster | None
    """The cluster of this machine, with its faults."""

    @property
    def mounts_environment(self) -> bool:
        """Whether workers find their Python environment in a volume instead of their image."""
        return self.own is not None

    def claim(self, namespace: str, volume: str) -> Manifest:
        """A claim of this name on a volume of the same content; a volume serves one claim, so each has its own."""
        name = f"{namespace}-{volume}" if self.own is not None else f"{os.environ[ENV_MODEL_VOLUMES]}-{namespace}"
        folder = {ENVIRONMENT_VOLUME: ROOT, CHECKPOINT_VOLUME: CHECKPOINT}[volume]
        if self.own is not None and self.kube.find(f"/api/v1/persistentvolumes/{name}") is None:
            self.own.local_volume(name, folder)
        spec = {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}},
        }
        metadata = {"name": volume, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


@contextmanager
def open_target(progress: Progress) -> Iterator[Target]:
    """The cluster of HANMARU_E2E_KUBECONFIG, or one of two nodes made here."""
    foreign = os.environ.get(ENV_KUBECONFIG)
    registry = os.environ.get(ENV_REGISTRY)
    if not foreign:
        machine.check()
    elif not registry or not os.environ.get(ENV_MODEL_VOLUMES):
        raise RuntimeError(
            f"set {ENV_REGISTRY} to the registry that holds {', '.join(IMAGES)}, and {ENV_MODEL_VOLUMES}"
            " to what names of volumes with the tiny checkpoint begin with (tests/e2e/README.md)"
        )
    with progress.step("programs built or found"):
        kubectl, helm = find_programs().kubectl, find_helm()
    if foreign:
        version = reference("gateway").rpartition(":")[2]
        with Kube(kubectl, Path(foreign)) as kube:
            yield Target(kube, helm, {name: f"{registry}/{name}:{version}" for name in IMAGES}, None)
        return
    with progress.step("images built or found"):
        files = archives(IMAGES)
    with progress.step("two nodes are up"):
        cluster = RealCluster((NodeRole(SYSTEM_NODE), NodeRole(OTHER_NODE))).__enter__()
    try:
        with progress.step("images are on both nodes"):
            for file in files.values():
                cluster.load_image(file)
        with Kube(kubectl, cluster.kubeconfig) as kube:
            yield Target(kube, helm, {name: reference(name) for name in IMAGES}, cluster)
    finally:
        with progress.step("the nodes are gone"):
            cluster.__exit__(None, None, None)
