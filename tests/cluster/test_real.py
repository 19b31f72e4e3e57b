"""Real nodes do what the tests of the whole system rely on: networks, volumes, devices, security, and faults."""

from __future__ import annotations

import json
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hanmaru_cluster.containerd import PAUSE_IMAGE
from hanmaru_cluster.real import HEARTBEAT_TIMEOUT_S, RealCluster

PROBE = "localhost/hanmaru-test/probe:1"
DEVICE = "nvidia.com/gpu"
Run = Callable[..., str]


def _pod(
    name: str,
    node: str | None = None,
    *,
    args: Sequence[str] = ("serve",),
    restart: str = "Never",
    limits: Mapping[str, str] | None = None,
    volume: Mapping[str, Any] | None = None,
    **container: Any,
) -> str:
    """As `restricted` as it gets; on a named node it does not mind taints."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    only = {
        "name": "c",
        "image": PROBE,
        "args": list(args),
        "securityContext": security,
        "resources": {"limits": dict(limits or {})},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}] if volume else [],
        **container,
    }
    spec: dict[str, Any] = {
        "containers": [only],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "v", **volume}] if volume else [],
    }
    if node:
        spec |= {"nodeSelector": {"kubernetes.io/hostname": node}, "tolerations": [{"operator": "Exists"}]}
    metadata = {"name": name, "labels": {"app": name}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _ready(run: Run, *names: str) -> None:
    run(f"wait --for=condition=Ready {' '.join(f'pod/{name}' for name in names)} --timeout=40s")


def test_pods_of_both_nodes_reach_a_service_by_its_name(run: Run, space: str, cluster: RealCluster) -> None:
    run("apply -f -", _pod("server", "node-a"))
    run("apply -f -", _pod("near", "node-a"))
    run("apply -f -", _pod("far", "node-b"))
    run("create service clusterip server --tcp=80:8080")
    _ready(run, "server", "near", "far")
    url = f"http://server.{space}.svc.cluster.local"
    for client in ("near", "far", "server"):
        assert run(f"exec {client} -- /probe get {url}") == "server\n"
    beside_the_control_plane = ["python3", "-c", f"import urllib.request as u; print(u.urlopen('{url}').read())"]
    assert "server" in cluster.run_inside(beside_the_control_plane)


def test_pods_reach_the_api_server_and_nothing_outside(run: Run) -> None:
    run("apply -f -", _pod("p"))
    _ready(run, "p")
    assert "10.96.0.1" in run("exec p -- /probe look kubernetes.default")
    with pytest.raises(RuntimeError, match=r"certificate signed by unknown authority|certificate is not trusted"):
        run("exec p -- /probe get https://kubernetes.default.svc")
    with pytest.raises(RuntimeError, match="no such host"):
        run("exec p -- /probe look example.org")
    with pytest.raises(RuntimeError, match="no route to host"):
        run("exec p -- /probe get http://192.0.2.1")


def test_logs_are_read_and_ports_forwarded_from_the_machine(
    run: Run, cluster: RealCluster, space: str, tmp_path: Path
) -> None:
    run("apply -f -", _pod("p"))
    _ready(run, "p")
    assert run("logs p") == "serving as p\n"
    with subprocess.Popen(
        [cluster.plane.kubectl_path, "-n", space, "port-forward", "pod/p", ":8080"],
        env={"KUBECONFIG": str(cluster.kubeconfig), "HOME": str(tmp_path)},  # where kubectl keeps what it discovered
        stdout=subprocess.PIPE,
        text=True,
    ) as forwarding:
        assert forwarding.stdout is not None
        port = forwarding.stdout.readline().split("127.0.0.1:")[1].split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
            assert answer.read() == b"p\n"
        forwarding.terminate()


def test_an_image_is_mounted_as_a_volume(run: Run) -> None:
    content = {"image": {"reference": PROBE, "pullPolicy": "IfNotPresent"}}
    run("apply -f -", _pod("p", image=PAUSE_IMAGE, command=["/v/probe"], volume=content))
    _ready(run, "p")
    assert run("logs p") == "serving as p\n"


@pytest.fixture
def volume(cluster: RealCluster, folder: Path) -> Iterator[str]:
    """A PersistentVolume of the folder."""
    name = f"volume-{uuid.uuid4().hex[:8]}"
    cluster.local_volume(name, folder)
    yield name
    cluster.api.delete(f"/api/v1/persistentvolumes/{name}")


def test_a_folder_of_the_machine_is_a_volume_that_nobody_writes_to(run: Run, volume: str, folder: Path) -> None:
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": volume,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": spec}
    run("apply -f -", json.dumps(claim))
    folder.chmod(0o777)
    for node in ("node-a", "node-b"):
        run("apply -f -", _pod(node, node, volume={"persistentVolumeClaim": {"claimName": "c"}}))
    _ready(run, "node-a", "node-b")
    for node in ("node-a", "node-b"):
        assert run(f"exec {node} -- /probe read /v/file") == "of the machine\n"
        with pytest.raises(RuntimeError, match="read-only file system"):
            run(f"exec {node} -- /probe write /v/new")


def test_pods_are_bound_by_devices_labels_and_taints(run: Run, cluster: RealCluster) -> None:
    tolerated = {"tolerations": [{"key": DEVICE, "operator": "Exists"}]}

    def asks(name: str, amount: int) -> str:
        pod = json.loads(_pod(name, limits={DEVICE: str(amount)}))
        pod["spec"] |= {**tolerated, "nodeSelector": {"node-restriction.kubernetes.io/model": "a100"}}
        return json.dumps(pod)

    run("apply -f -", asks("fits", 8))
    _ready(run, "fits")
    run("apply -f -", asks("waits", 1))
    run("wait --for=condition=PodScheduled=False pod/waits --timeout=20s")
    cluster.set_resource("node-a", DEVICE, "9")
    _ready(run, "waits")
    cluster.set_resource("node-a", DEVICE, "8")
    run("apply -f -", _pod("keeps-away"))
    _ready(run, "keeps-away")
    assert run("get pod keeps-away -o jsonpath={.spec.nodeName}") == "node-b"


def test_a_container_that_takes_too_much_memory_is_killed(run: Run) -> None:
    run("apply -f -", _pod("p", args=["fill", "200"], limits={"memory": "100Mi"}))
    reason = "{.status.containerStatuses[0].state.terminated.reason}"
    run(f"wait --for=jsonpath={reason}=OOMKilled pod/p --timeout=30s")


def test_a_killed_pod_is_started_again_by_its_kubelet(run: Run, cluster: RealCluster, space: str) -> None:
    run("apply -f -", _pod("p", "node-a", restart="Always"))
    _ready(run, "p")
    cluster.kill_pod(space, "p")
    run("wait --for=jsonpath={.status.containerStatuses[0].restartCount}=1 pod/p --timeout=30s")
    _ready(run, "p")
    assert run("get pod p -o jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}") == "137"


def test_containers_outlive_their_kubelet_and_its_node_keeps_its_devices(run: Run, cluster: RealCluster) -> None:
    run("apply -f -", _pod("p", "node-a"))
    _ready(run, "p")
    cluster.kill_kubelet("node-a")
    cluster.kubectl("wait", "--for=condition=Ready=Unknown", "node/node-a", f"--timeout={HEARTBEAT_TIMEOUT_S + 15}s")
    cluster.start_kubelet("node-a")
    _ready(run, "p")
    assert run("get pod p -o jsonpath={.status.containerStatuses[0].restartCount}") == "0"
    run("apply -f -", _pod("asks", "node-a", limits={DEVICE: "8"}))
    _ready(run, "asks")


def test_a_node_that_is_cut_off_is_noticed_in_seconds_and_comes_back(run: Run, cluster: RealCluster) -> None:
    run("apply -f -", _pod("p", "node-b"))
    _ready(run, "p")
    cluster.cut("node-b")
    cluster.kubectl("wait", "--for=condition=Ready=Unknown", "node/node-b", f"--timeout={HEARTBEAT_TIMEOUT_S + 15}s")
    run("wait --for=condition=Ready=False pod/p --timeout=20s")
    cluster.restore("node-b")
    cluster.kubectl("wait", "--for=condition=Ready", "node/node-b", "--timeout=30s")
    _ready(run, "p")
    assert run("get pod p -o jsonpath={.status.containerStatuses[0].restartCount}") == "0"
