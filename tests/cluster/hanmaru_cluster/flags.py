"""What each program of the control plane is told: pure functions from where things lie to command lines.

`control_plane` lays the files out, starts the programs and knows nothing of their flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmaru_cluster.kwok import HEARTBEAT

HEARTBEAT_TIMEOUT_S = 8
"""A node whose lease is older is marked Unknown and tainted (40 s in a usual cluster), where nothing else is asked for.

Leases are renewed four times in it: 50 nodes keep a fifth of a core busy.
"""
LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
"""The address of the `kubernetes` Service, which clients in a cluster use."""
UNREACHABLE_TOLERATION_S = 20
"""Pods leave a real node that was lost for so long (300 s in a usual cluster), where they do not say otherwise."""
CONTROLLERS_USER = "system:kube-controller-manager"
SCHEDULER_USER = "system:kube-scheduler"
KWOK_USER = "kwok"
_POD_RANGE = "10.128.0.1/9"
"""kwok's own default has room for 254 pods."""
_CLIENT_QPS, _CLIENT_BURST = 2000, 4000
"""The usual 20 a second would be what a benchmark measures."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of one control plane are, on which loopback ports it listens, and when nodes count as lost."""

    folder: Path
    etcd_port: int
    etcd_peer_port: int
    apiserver_port: int
    heartbeat_timeout_s: int
    address: str = LOOPBACK
    """Where the API server listens; on any other address than loopback it expects kubelets."""
    relay_port: int | None = None
    """On loopback, where people and tests reach an API server that is elsewhere."""

    @property
    def url(self) -> str:
        """Of the API server, for people and tests."""
        return f"https://{LOOPBACK}:{self.relay_port or self.apiserver_port}"

    @property
    def inner_url(self) -> str:
        """Of the API server, for the cluster's own programs."""
        return f"https://{self.address}:{self.apiserver_port}"

    @property
    def authority(self) -> Path:
        """The certificate that everybody trusts."""
        return self.folder / "authority.crt"

    @property
    def service_account_key(self) -> Path:
        """Signs tokens and verifies them."""
        return self.folder / "service-accounts.key"

    @property
    def scheduler_config(self) -> Path:
        """Holds `scheduler_config()` as JSON."""
        return self.folder / "scheduler.json"

    @property
    def kwok_config(self) -> Path:
        """Holds kwok's stages."""
        return self.folder / "kwok.yaml"

    def certificate(self, name: str) -> Path:
        """Of a server or client."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """That belongs to `certificate(name)`."""
        return self.folder / f"{name}.key"

    def kubeconfig(self, user: str) -> Path:
        """Of a user."""
        return self.folder / f"{user}.kubeconfig"


def etcd(layout: Layout) -> list[str]:
    """One member, which forgets everything in a power cut: what it holds is thrown away with its folder."""
    url = f"http://127.0.0.1:{layout.etcd_port}"
    peer = f"http://127.0.0.1:{layout.etcd_peer_port}"
    return [
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(layout: Layout) -> list[str]:
    """RBAC decides, Pod Security is on, nobody is anonymous, nothing is audited."""
    return [
        f"--advertise-address={layout.address}",
        *(_alone() if layout.address == LOOPBACK else _with_kubelets(layout)),
        f"--secure-port={layout.apiserver_port}",
        f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
        f"--client-ca-file={layout.authority}",
        f"--tls-cert-file={layout.certificate('apiserver')}",
        f"--tls-private-key-file={layout.key('apiserver')}",
        "--anonymous-auth=false",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--service-account-key-file={layout.service_account_key}",
        f"--service-account-signing-key-file={layout.service_account_key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=2000",
        "--profiling=false",
    ]


def _alone() -> list[str]:
    return [
        f"--bind-address={LOOPBACK}",
        "--endpoint-reconciler-type=none",  # the others refuse a loopback address, again and again
        "--authorization-mode=RBAC",
        "--enable-admission-plugins=PodSecurity",
    ]


def _with_kubelets(layout: Layout) -> list[str]:
    """Kubelets write only their own objects, and are asked for logs and the like."""
    return [
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=PodSecurity,NodeRestriction",
        f"--kubelet-certificate-authority={layout.authority}",
        f"--kubelet-client-certificate={layout.certificate('admin')}",
        f"--kubelet-client-key={layout.key('admin')}",
        "--kubelet-preferred-address-types=InternalIP",  # the names of nodes are known to nobody
        f"--default-not-ready-toleration-seconds={UNREACHABLE_TOLERATION_S}",
        f"--default-unreachable-toleration-seconds={UNREACHABLE_TOLERATION_S}",
    ]


def controller_manager(layout: Layout) -> list[str]:
    """Every default controller, each with its own service account, none slowed down for the sake of a large cluster."""
    syncs = (
        "deployment",
        "endpoint",
        "namespace",
        "replicaset",
        "service-endpoint",
        "serviceaccount-token",
        "statefulset",
    )
    return [
        f"--kubeconfig={layout.kubeconfig(CONTROLLERS_USER)}",
        "--secure-port=0",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={layout.service_account_key}",
        f"--root-ca-file={layout.authority}",
        f"--kube-api-qps={_CLIENT_QPS}",
        f"--kube-api-burst={_CLIENT_BURST}",
        *(f"--concurrent-{name}-syncs=20" for name in syncs),
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=1s",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={layout.heartbeat_timeout_s}s",
        # Taints at once; usually one node in ten seconds gets them, and none in a small cluster that is half dead.
        "--node-eviction-rate=100",
        "--secondary-node-eviction-rate=100",
        "--large-cluster-size-threshold=0",
    ]


def scheduler(layout: Layout) -> list[str]:
    """Its settings are in a file: not all of them are flags."""
    return [f"--config={layout.scheduler_config}", "--secure-port=0"]


def scheduler_config(layout: Layout) -> dict[str, Any]:
    """The scheduler's file: pods that did not fit are tried again after two seconds at most, not ten."""
    kubeconfig = str(layout.kubeconfig(SCHEDULER_USER))
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig, "qps": _CLIENT_QPS, "burst": _CLIENT_BURST},
        "leaderElection": {"leaderElect": False},
        "podMaxBackoffSeconds": 2,
    }


def kwok(layout: Layout) -> list[str]:
    """It cares for the nodes with the HEARTBEAT label, and renews the lease of each four times in its duration."""
    return [
        f"--kubeconfig={layout.kubeconfig(KWOK_USER)}",
        f"--config={layout.kwok_config}",
        f"--manage-nodes-with-label-selector={HEARTBEAT}",
        f"--node-lease-duration-seconds={layout.heartbeat_timeout_s}",
        f"--cidr={_POD_RANGE}",
        "--node-ip=127.0.0.1",
        "--v=warn",
    ]
