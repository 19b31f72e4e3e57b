"""The charts on the cluster: what helm is told, and what it does. `conftest` and the tests of upgrades use it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hanmaru_e2e.kube import Manifest
from hanmaru_e2e.target import ENVIRONMENT_VOLUME, ROOT, SYSTEM_NODE, Target

CHARTS = ROOT / "charts"
CPU_DEMO = CHARTS / "hanmaru/examples/cpu-demo.yaml"
NAME = "hanmaru"
NAMESPACE = "hanmaru"
HELM_DEADLINE_S = 420.0
GATEWAY = f"{NAME}-gateway"
OPERATOR = f"{NAME}-operator"
RAY_HEAD = f"{NAME}-ray-head"
POOL = "cpu"
MODEL = "tiny-k-exaone"
"""The example's deployment, in the release's namespace, its route, and the claim of its checkpoint."""
TENANT, KEY_SECRET = "demo", "demo-key"


class Release:
    """One release; its values are the example's with what this cluster needs, and what a test has changed since."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._changed: list[Mapping[str, Any]] = []

    @property
    def url(self) -> str:
        """Of the gateways' Service, from inside."""
        return f"http://{GATEWAY}.{NAMESPACE}.svc:8000"

    @property
    def grpc_url(self) -> str:
        """Of the same for gRPC."""
        return f"grpc://{GATEWAY}.{NAMESPACE}.svc:9000"

    def install(self) -> None:
        """Definitions first, then everything; returns when all is ready."""
        self.helm("install", "hanmaru-crds", str(CHARTS / "hanmaru-crds"), "-n", NAMESPACE)
        self._apply("install")

    def upgrade(self, changed: Mapping[str, Any]) -> None:
        """With other values on top of those so far; returns when all is ready."""
        self._changed.append(changed)
        self._apply("upgrade")

    def rollback(self) -> None:
        """To the revision before; returns when all is ready."""
        self._changed.pop()
        self.helm("rollback", NAME, "-n", NAMESPACE, "--wait", "--timeout", f"{HELM_DEADLINE_S:.0f}s")

    def uninstall(self) -> None:
        """Everything but the definitions; returns when helm does."""
        self.helm("uninstall", NAME, "-n", NAMESPACE, "--wait", "--timeout", "60s")

    def helm(self, *arguments: str) -> str:
        """What helm prints. Raises RuntimeError with its words."""
        done = subprocess.run(
            [str(self._target.helm), *arguments],
            env=self._target.kube.environ,
            capture_output=True,
            text=True,
            timeout=HELM_DEADLINE_S + 30,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"helm {arguments[0]}: {done.stderr.strip()[-3000:]}")
        return done.stdout

    def _apply(self, verb: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, values in enumerate([cluster_values(self._target), *self._changed]):
                file = Path(folder) / f"{number}.yaml"
                file.write_text(yaml.safe_dump(dict(values)))
                files += ["-f", str(file)]
            chart = [NAME, str(CHARTS / "hanmaru"), "-n", NAMESPACE, "-f", str(CPU_DEMO), *files]
            self.helm(verb, *chart, "--wait", "--timeout", f"{HELM_DEADLINE_S:.0f}s")


def cluster_values(target: Target) -> Manifest:
    """What an installation on this cluster writes: its images, and where its workers find their environment."""

    def image(name: str) -> Manifest:
        registry, _, rest = target.images[name].rpartition("/")
        repository, _, tag = rest.partition(":")
        return {"registry": registry, "repository": repository, "tag": tag}

    values: Manifest = {
        "operator": {"image": image("operator"), "workerImages": {"SGLang": image("worker")}},
        "gateway": {
            "image": image("gateway"),
            "ray": {"redis": {"image": image("redis")}},
            # Two nodes of two cores share this machine's two, and hold one gateway more while they are replaced.
            "resources": {"requests": {"cpu": "200m"}},
        },
        "redis": {"image": image("redis")},
        "collector": {"image": image("collector")},
    }
    values["pools"] = {POOL: {"devices": {"perNode": 1}, "podTemplate": worker_template(target)}}
    values["modelDeployments"] = {MODEL: {"serving": {"podTemplate": one_a_node(target, f"hanmaru.test/{MODEL}")}}}
    if target.own is not None:
        here = {"nodeSelector": {"kubernetes.io/hostname": SYSTEM_NODE}}
        for component in ("operator", "redis", "collector"):
            values[component] |= here
        values["gateway"]["ray"]["redis"] |= here
        values["gateway"]["ray"]["head"] = here
    return values


def one_a_node(target: Target, slot: str) -> Manifest:
    """Of a deployment: each node of ours has one slot, so no two of its pods share a node."""
    if target.own is None:
        return {}
    for node in target.own.nodes:
        target.own.set_resource(node, slot, "1")
    one = {slot: "1"}
    return {"spec": {"containers": [{"name": "engine", "resources": {"requests": one, "limits": one}}]}}


def worker_template(target: Target) -> Manifest:
    """Of a pool: little of a core, because all nodes share this machine's, and the environment in a volume."""
    engine: Manifest = {"name": "engine", "resources": {"requests": {"cpu": "200m", "memory": "2Gi"}}}
    if not target.mounts_environment:
        return {"spec": {"containers": [engine]}}
    engine["volumeMounts"] = [{"name": ENVIRONMENT_VOLUME, "mountPath": str(ROOT), "readOnly": True}]
    claim = {"claimName": ENVIRONMENT_VOLUME, "readOnly": True}
    volume = {"name": ENVIRONMENT_VOLUME, "persistentVolumeClaim": claim}
    return {"spec": {"containers": [engine], "volumes": [volume]}}
