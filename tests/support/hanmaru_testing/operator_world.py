"""A test's corner of the real control plane, in the operator's words: pools over its own nodes, deployments, tenants.

Names of pools and routes are the cluster's, so each world adds its own suffix. What a test waits for it says as a
condition on what the API server shows; nothing here knows how the operator works.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, VERSION
from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_REPLICA

Manifest = dict[str, Any]
GPU = "nvidia.com/gpu"
RACK = "topology.kubernetes.io/rack"
WAIT_S = 30.0
_POLL_S = 0.1


class World:
    """Makes objects in one namespace, and reads what became of them. A context manager: its pools go with it."""

    def __init__(self, api: ApiClient, namespace: str, nodes: Nodes) -> None:
        self.api = api
        self.namespace = namespace
        self.nodes = nodes
        self.suffix = uuid.uuid4().hex[:6]
        self._pools: list[str] = []
        self._claims: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.delete(self._path("modeldeployments"))
        for pool in self._pools:
            self.api.delete(f"/apis/{GROUP}/{VERSION}/acceleratorpools/{pool}")
        for claim in self._claims:
            self.api.delete(f"/api/v1/persistentvolumes/{self.named(claim)}")

    # --- objects -----------------------------------------------------------------------------------------------------

    def add_nodes(self, pool: str, count: int, *, devices: int = 8, rack: str = "r1", **more: Any) -> list[str]:
        """Nodes of a pool in one rack; names."""
        labels = {"hanmaru.test/pool": self.named(pool), RACK: rack}
        return self.nodes.add(count, labels=labels, capacity={GPU: str(devices)}, **more)

    def named(self, name: str) -> str:
        """A cluster-wide name of this world's."""
        return f"{name}-{self.suffix}"

    def pool(self, name: str, *, memory: str = "80Gi", **spec: Any) -> str:
        """A pool over the nodes of `add_nodes(name, …)`; its full name. `spec` is merged over ours, one level deep."""
        term = {"matchExpressions": [{"key": "hanmaru.test/pool", "operator": "In", "values": [self.named(name)]}]}
        ours: Manifest = {
            "nodes": {"selectorTerms": [term]},
            "devices": {"type": "Resource", "resource": {"name": GPU}, "memory": memory, "perNode": 8},
            "engine": {"type": "SGLang", "image": "worker:test"},
            "capabilities": {
                "maxContextTokens": 262144,
                "dtypes": ["bfloat16"],
                "features": ["mtp", "hybrid-kv", "expert-parallel"],
            },
            "scheduling": {"type": "Gates", "bindTimeoutSeconds": 300},
            "topology": {"domainKey": RACK},
        }
        merged = {
            key: {**ours.get(key, {}), **value} if isinstance(value, dict) else value for key, value in spec.items()
        }
        full = self.named(name)
        self._pools.append(full)
        self.api.create(
            f"/apis/{GROUP}/{VERSION}/acceleratorpools",
            {
                "apiVersion": API_VERSION,
                "kind": "AcceleratorPool",
                "metadata": {"name": full},
                "spec": {**ours, **merged},
            },
        )
        return full

    def deployment(
        self, name: str, pools: Sequence[str | Manifest], *, claim: str = "k-exaone", **spec: Any
    ) -> Manifest:
        """The manifest of a deployment of the checkpoint behind `claim`; pools by their full names or as entries."""
        return {
            "apiVersion": API_VERSION,
            "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "source": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": claim}},
                "licence": {"accepted": "K-EXAONE AI Model License"},
                "route": {"name": self.named(name)},
                "pools": [{"name": pool} if isinstance(pool, str) else pool for pool in pools],
                "lifecycle": {"drainSeconds": 1},
                **spec,
            },
        }

    def deploy(self, name: str, pools: Sequence[str | Manifest], **spec: Any) -> None:
        """Create it, and the claim that holds its checkpoint."""
        manifest = self.deployment(name, pools, **spec)
        source = manifest["spec"]["source"]
        if source["type"] == "PersistentVolumeClaim":
            self.claim(source["persistentVolumeClaim"]["claimName"])
        self.api.create(self._path("modeldeployments"), manifest)

    def claim(self, name: str) -> None:
        """A claim bound to a volume of its own, so that pods which mount it can be scheduled."""
        if name in self._claims:
            return
        self._claims.append(name)
        size = {"storage": "1Gi"}
        shared: Manifest = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
        volume = {
            **shared,
            "capacity": size,
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": self.namespace, "name": name},
        }
        wanted = {**shared, "resources": {"requests": size}, "volumeName": self.named(name)}
        self.api.create(
            "/api/v1/persistentvolumes",
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": self.named(name)}, "spec": volume},
        )
        self.api.create(
            f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims",
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": wanted},
        )

    def patch(self, name: str, spec: Manifest) -> None:
        """Merge into a deployment's spec."""
        self.api.patch(self._path("modeldeployments", name), {"spec": spec})

    def annotate(self, name: str, key: str, value: str) -> None:
        """Annotate a deployment."""
        self.api.patch(self._path("modeldeployments", name), {"metadata": {"annotations": {key: value}}})

    def delete(self, name: str) -> None:
        """Delete a deployment."""
        self.api.delete(self._path("modeldeployments", name))

    def occupy(self, node: str, *, devices: int = 8) -> str:
        """Somebody else's pod on a node, past the scheduler; its name."""
        name = f"foreign-{uuid.uuid4().hex[:6]}"
        container = {"name": "main", "image": "foreign", "resources": {"limits": {GPU: str(devices)}}}
        pod = {"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [container]}}
        self.api.create(f"/api/v1/namespaces/{self.namespace}/pods", pod)
        return name

    def delete_pod(self, name: str) -> None:
        """Ask a pod to end."""
        self.api.delete(self.pod_path(name))

    def bind(self, pod: Manifest, node: str) -> None:
        """Bind a pod as a scheduler does."""
        name = pod["metadata"]["name"]
        binding = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        self.api.create(f"{self.pod_path(name)}/binding", binding)

    def pod_path(self, name: str) -> str:
        """Of a pod in the API."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    # --- what became of them -----------------------------------------------------------------------------------------

    def get(self, name: str) -> Manifest:
        """A deployment."""
        return self.api.get(self._path("modeldeployments", name))

    def status(self, name: str) -> Manifest:
        """A deployment's status; empty before the operator has looked."""
        status: Manifest = self.get(name).get("status") or {}
        return status

    def pool_status(self, pool: str) -> Manifest:
        """A pool's status, by its full name."""
        found: Manifest = self.api.get(f"/apis/{GROUP}/{VERSION}/acceleratorpools/{pool}")["status"]
        return found

    def condition(self, name: str, kind: str) -> Manifest:
        """One of its conditions; empty when it is not there."""
        return condition(self.get(name), kind)

    def groups(self, name: str) -> list[Manifest]:
        """Its StatefulSets, the oldest first."""
        found = self._list(f"/apis/apps/v1/namespaces/{self.namespace}/statefulsets", name)
        return sorted(found, key=lambda group: (group["metadata"]["creationTimestamp"], group["metadata"]["name"]))

    def replicas(self, name: str) -> set[str]:
        """Names of its replicas."""
        return {group["metadata"]["name"] for group in self.groups(name)}

    def serving(self, name: str) -> set[str]:
        """Names of the replicas whose pods are all there and ready."""
        pods = self.pods(name)
        return {
            group["metadata"]["name"]
            for group in self.groups(name)
            if group["spec"]["replicas"]
            == sum(
                is_ready(pod) for pod in pods if pod["metadata"]["labels"][LABEL_REPLICA] == group["metadata"]["name"]
            )
        }

    def children(self, name: str, plural: str) -> set[str]:
        """Names of a replica's other objects, such as `secrets` or `apis/networking.k8s.io/v1/networkpolicies`."""
        group, _, kind = plural.rpartition("/")
        found = self._list(f"/{group or 'api/v1'}/namespaces/{self.namespace}/{kind}", name)
        return {each["metadata"]["name"] for each in found if LABEL_REPLICA in each["metadata"]["labels"]}

    def pods(self, name: str, replica: str | None = None) -> list[Manifest]:
        """Pods of its replicas, or of one."""
        found = self._list(f"/api/v1/namespaces/{self.namespace}/pods", name)
        labelled = [pod for pod in found if LABEL_REPLICA in pod["metadata"]["labels"]]
        return [pod for pod in labelled if replica in (None, pod["metadata"]["labels"][LABEL_REPLICA])]

    def wait(self, what: str, is_so: Callable[[], Any], *, within_s: float = WAIT_S) -> Any:
        """Until `is_so` answers something true, which is returned. An object that is not there yet is not so."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                found = is_so()
            except (ApiError, OSError, KeyError, IndexError) as error:
                found, last = None, repr(error)
            else:
                last = repr(found)
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s:g} s: {what} (last: {last})\n{self.tell()}")
            time.sleep(_POLL_S)

    def wait_ready(self, name: str, replicas: int = 1, *, within_s: float = WAIT_S) -> Manifest:
        """Until a deployment of this generation is complete with so many ready replicas; its status."""

        def is_ready() -> Manifest | None:
            found = self.get(name)
            status: Manifest = found.get("status") or {}
            is_current = status.get("observedGeneration") == found["metadata"]["generation"]
            done = condition(found, "Progressing").get("reason") == "RolloutComplete"
            counts = (status.get("replicas"), status.get("readyReplicas"))
            if not (is_current and done and counts == (replicas, replicas)):
                return None
            # What has just happened to its pods may not have reached the status yet.
            return status if len(self.serving(name)) == replicas else None

        ready: Manifest = self.wait(f"{name} has {replicas} ready replicas", is_ready, within_s=within_s)
        return ready

    def tell(self) -> str:
        """What the namespace holds, for a test that failed."""
        deployments = self.api.get(self._path("modeldeployments"))["items"]
        lines = [f"{md['metadata']['name']}: {json.dumps(md.get('status'), ensure_ascii=False)}" for md in deployments]
        for pod in self.api.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]:
            gates = [gate["name"] for gate in pod["spec"].get("schedulingGates", ())]
            phase, node = pod["status"].get("phase"), pod["spec"].get("nodeName")
            lines.append(f"pod {pod['metadata']['name']}: {phase} on {node}, gates {gates}")
        return "\n".join(lines)

    def _path(self, plural: str, name: str = "") -> str:
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    def _list(self, path: str, deployment: str) -> list[Manifest]:
        found: list[Manifest] = self.api.get(f"{path}?labelSelector={LABEL_DEPLOYMENT}={deployment}")["items"]
        return found


def condition(found: Manifest, kind: str) -> Manifest:
    """A condition of an object; empty when it is not there."""
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})


def is_ready(pod: Manifest) -> bool:
    """Whether it serves, and nobody has told it to end."""
    return condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]


def checkpoint_folder(folder: Path, config: Path) -> Path:
    """A folder that holds a checkpoint's `config.json` and nothing else."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder
