"""How each node's kubelet and kube-proxy are told to live beside others on one machine; pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanmaru_cluster.build import NodePrograms
from hanmaru_cluster.dns import DNS_SERVICE
from hanmaru_cluster.flags import Layout
from hanmaru_cluster.roles import POD_RANGE, NodeLayout


def config(node: NodeLayout, layout: Layout, *, has_cgroup_v1: bool) -> dict[str, Any]:
    """The kubelet's file. `layout` says where certificates are, and how soon a silent node counts as lost."""
    certificate = f"kubelet-{node.name}"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.certificate(certificate)),
        "tlsPrivateKeyFile": str(layout.key(certificate)),
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "enforceNodeAllocatable": ["pods"] if not has_cgroup_v1 else [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "podLogsDir": str(node.data / "logs"),  # of its own: a kubelet deletes the logs of pods it does not know
        "volumePluginDir": str(node.data / "volume-plugins"),
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "oomScoreAdj": 0,
        # The disk is everybody's: it fills and empties for reasons that are not the cluster's.
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "nodeLeaseDurationSeconds": layout.heartbeat_timeout_s,
        "nodeStatusUpdateFrequency": "2s",
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
        "readOnlyPort": 0,
    }


def argv(programs: NodePrograms, node: NodeLayout, layout: Layout, file: Path) -> list[str]:
    """Starts it with the file that holds `config()`."""
    return [
        str(programs.kubelet),
        f"--config={file}",
        f"--kubeconfig={layout.kubeconfig(user(node.name))}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        f"--root-dir={node.data / 'kubelet'}",
    ]


def user(node: str) -> str:
    """Whom the API server takes the node's kubelet for."""
    return f"system:node:{node}"


def proxy_config(name: str, layout: Layout) -> dict[str, Any]:
    """The kube-proxy's file, on the node of this name. Limits of the whole machine stay as they are."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig(PROXY_USER))},
        "hostnameOverride": name,
        "clusterCIDR": POD_RANGE,
        "detectLocalMode": "ClusterCIDR",
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms"},
        "oomScoreAdj": 0,
    }


def proxy_argv(programs: NodePrograms, file: Path) -> list[str]:
    """Starts it with the file that holds `proxy_config()`."""
    return [str(programs.kube_proxy), f"--config={file}"]


PROXY_USER = "system:kube-proxy"
