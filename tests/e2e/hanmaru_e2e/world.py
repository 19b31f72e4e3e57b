"""The objects that tests make, in the words of users, and what became of them: namespaces, pools, deployments, tenants.

Everything is made by `kubectl apply`. Reading waits are bounded, and say what they saw last.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmaru_contracts import keys
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, VERSION
from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_REPLICA
from hanmaru_operator.render.security import CONTAINER_SECURITY

from hanmaru_e2e import release
from hanmaru_e2e.kube import Kube, Manifest, condition, is_ready
from hanmaru_e2e.release import Release
from hanmaru_e2e.target import CHECKPOINT_VOLUME, ENVIRONMENT_VOLUME, Target

LICENCE = "K-EXAONE AI Model License"
PROGRAMS = Path(__file__).parents[1] / "programs"
MODELS, CLIENTS = "models", "clients"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
START_S = 240.0
"""An engine takes one minute on two idle cores, two where another starts beside it."""
CLIENT_PYTHON = "python"
_PROGRAMS_MOUNT = "/e2e"
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True, slots=True)
class Key:
    """A tenant and its key."""

    tenant: str
    text: str


class World:
    """Makes and reads objects for the tests of one run."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kube: Kube = target.kube

    # --- namespaces --------------------------------------------------------------------------------------------------

    def namespaces(self, *names: str) -> None:
        """Make namespaces in which Pod Security "restricted" is enforced."""
        self.kube.apply(
            *(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
                for name in names
            )
        )
        for name in names:
            path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            self.kube.wait(f"{name} takes pods", lambda path=path: self.kube.find(path), within_s=30)  # type: ignore[misc]

    def claims(self, namespace: str) -> None:
        """What workers of this namespace mount: the checkpoint, and on a cluster of ours their environment."""
        volumes = [CHECKPOINT_VOLUME] + [ENVIRONMENT_VOLUME] * self.target.mounts_environment
        self.kube.apply(*(self.target.claim(namespace, volume) for volume in volumes))

    # --- pools and deployments ---------------------------------------------------------------------------------------

    def pool(self, name: str, **spec: Any) -> None:
        """Apply a pool."""
        metadata = {"name": name}
        self.kube.apply({"apiVersion": API_VERSION, "kind": "AcceleratorPool", "metadata": metadata, "spec": spec})

    def deploy(self, name: str, pool: str, *, namespace: str = MODELS, **spec: Any) -> None:
        """Apply a deployment of the tiny checkpoint in its claim, whose name is its route; `spec` goes over ours."""
        claim = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": CHECKPOINT_VOLUME}}
        ours: Manifest = {
            "source": claim,
            "licence": {"accepted": LICENCE, "use": "Internal"},
            "route": {"name": name},
            "access": {"from": "All"},
            "pools": [{"name": pool}],
            "serving": {"contextTokens": 8192},
            "lifecycle": {"drainSeconds": 30},
        }
        self.kube.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {**ours, **spec},
            }
        )

    def deployment_path(self, name: str, namespace: str = MODELS) -> str:
        """Of a deployment in the API."""
        return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/modeldeployments/{name}"

    def workers(self, name: str, namespace: str = MODELS) -> list[Manifest]:
        """Pods of a deployment's replicas, those that end included."""
        found = self.kube.pods(namespace, f"{LABEL_DEPLOYMENT}={name}")
        return [pod for pod in found if LABEL_REPLICA in pod["metadata"]["labels"]]

    def serving(self, name: str, namespace: str = MODELS) -> list[Manifest]:
        """Pods of its replicas that are ready."""
        return [pod for pod in self.workers(name, namespace) if is_ready(pod)]

    def condition(self, name: str, kind: str, namespace: str = MODELS) -> Manifest:
        """One of its conditions; empty when it is not there."""
        return condition(self.kube.get(self.deployment_path(name, namespace)), kind)

    def await_serving(
        self, name: str, replicas: int, *, namespace: str = MODELS, within_s: float = START_S
    ) -> list[Manifest]:
        """Until the operator says that the rollout is complete with so many ready replicas; their pods."""

        def is_so() -> list[Manifest]:
            found = self.kube.get(self.deployment_path(name, namespace))
            status = found.get("status") or {}
            is_current = status.get("observedGeneration") == found["metadata"]["generation"]
            is_done = condition(found, "Progressing").get("reason") == "RolloutComplete"
            counts = (status.get("replicas"), status.get("readyReplicas"))
            return self.serving(name, namespace) if is_current and is_done and counts == (replicas, replicas) else []

        return self.kube.wait(f"{name} serves with {replicas} replicas", is_so, within_s=within_s)

    def kill_pod(self, namespace: str, name: str) -> None:
        """SIGKILL to all of its processes; on somebody else's cluster its deletion without a grace period."""
        if self.target.own is not None:
            self.target.own.kill_pod(namespace, name)
        else:
            self.kube.kubectl("-n", namespace, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    def undeploy(self, name: str, namespace: str = MODELS) -> None:
        """Delete a deployment and wait until its pods are gone."""
        self.kube.delete(self.deployment_path(name, namespace))
        self.kube.wait(f"the pods of {name} are gone", lambda: not self.workers(name, namespace), within_s=120)

    # --- tenants -----------------------------------------------------------------------------------------------------

    def tenant(self, name: str, models: Sequence[tuple[str, str]], *, namespace: str = release.NAMESPACE) -> Key:
        """Apply a Tenant with a key in a Secret; models as (namespace, name)."""
        key = Key(name, keys.new_api_key())
        meta = {"name": name, "namespace": namespace}
        credential = {"name": "key", "type": "APIKey", "apiKey": {"secretRef": {"name": f"{name}-key", "key": "key"}}}
        spec = {
            "credentials": [credential],
            "models": [{"namespace": model_namespace, "name": model} for model_namespace, model in models],
        }
        self.kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {**meta, "name": f"{name}-key"},
                "stringData": {"key": key.text},
            },
            {"apiVersion": API_VERSION, "kind": "Tenant", "metadata": meta, "spec": spec},
        )
        return key

    # --- stand-ins ---------------------------------------------------------------------------------------------------

    def sleeping_pool_template(self) -> Manifest:
        """Of a pool whose pods are made, placed and started, and compute nothing."""
        engine = {
            "name": "engine",
            "image": self.target.images["client"],
            "command": ["sleep", "infinity"],
            "startupProbe": None,
            "livenessProbe": None,
            "readinessProbe": None,
        }
        return {"spec": {"containers": [engine]}}


class Clients:
    """Pods from which gateways are asked, one a namespace: nobody to the platform but for the keys they are given."""

    def __init__(self, world: World, installed: Release, *, namespace: str = CLIENTS, node: str | None = None) -> None:
        self._kube, self._namespace, self._release = world.kube, namespace, installed
        self._image, self._node = world.target.images["client"], node

    def start(self) -> None:
        """Make the pod and wait until it runs."""
        programs = {file.name: file.read_text() for file in sorted(PROGRAMS.glob("*.py"))}
        metadata = {"name": "client", "namespace": self._namespace}
        container = {
            "name": "client",
            "image": self._image,
            "command": ["sleep", "infinity"],
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [{"name": "programs", "mountPath": _PROGRAMS_MOUNT}, {"name": "tmp", "mountPath": "/tmp"}],
        }
        spec: Manifest = {
            "securityContext": POD_SECURITY,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "programs", "configMap": {"name": "programs"}}, {"name": "tmp", "emptyDir": {}}],
        }
        if self._node is not None:
            spec["nodeSelector"] = {"kubernetes.io/hostname": self._node}
        self._kube.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {**metadata, "name": "programs"},
                "data": programs,
            },
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        )
        self._kube.kubectl("-n", self._namespace, "wait", "--for=condition=Ready", "pod/client", "--timeout=60s")

    def ask(self, kind: str, key: Key, model: str) -> Manifest:
        """One question by `ask.py`: openai, stream, greedy, grpc or models."""
        url = self._release.grpc_url if kind == "grpc" else self._release.url
        found: Manifest = json.loads(self.run("ask.py", kind, url, key.text, model))
        return found

    def knock(self, doors: Sequence[Mapping[str, Any]]) -> list[Manifest]:
        """What ports say to a stranger, by `knock.py`."""
        found: list[Manifest] = json.loads(self.run("knock.py", stdin=json.dumps(list(doors))))
        return found

    def run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        """What one of the programs prints."""
        command = (CLIENT_PYTHON, f"{_PROGRAMS_MOUNT}/{program}", *arguments)
        return self._kube.exec(self._namespace, "client", *command, stdin=stdin)

    @contextmanager
    def load(self, key: Key, model: str, *, callers: int = 4) -> Iterator[Load]:
        """Callers that ask all the time during a block; what they saw is in `Load.summary` afterwards."""
        command = [CLIENT_PYTHON, f"{_PROGRAMS_MOUNT}/load.py", self._release.url, key.text, model]
        argv = self._kube.kubectl_argv(
            "-n", self._namespace, "exec", "-i", "client", "--", *command, f"--callers={callers}"
        )
        process = subprocess.Popen(
            argv,
            env=self._kube.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        load = Load(process)
        try:
            load.begin()
            yield load
        finally:
            load.end()


class Load:
    """Callers at work."""

    END_S = 90.0

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.summary: Manifest = {}

    def begin(self) -> None:
        """Returns when they have begun."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "asking":
            self._process.kill()
            raise RuntimeError(f"the load client does not start: {self._process.communicate()[1][-2000:]}")

    def end(self) -> None:
        """Tell them to end, and read what they saw."""
        timer = threading.Timer(self.END_S, self._process.kill)
        timer.start()
        try:
            out, err = self._process.communicate()
        finally:
            timer.cancel()
        if self._process.returncode != 0 or not out.strip():
            raise RuntimeError(f"the load client ended with {self._process.returncode}: {err[-2000:]}")
        self.summary = json.loads(out)

    def require_no_failure(self, at_least: int = 10) -> None:
        """Enough requests, and every one of them answered whole."""
        assert self.summary["failed"] == 0, self.summary
        assert self.summary["requests"] >= at_least, self.summary
