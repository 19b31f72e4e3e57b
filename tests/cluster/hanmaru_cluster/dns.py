"""Names inside a cluster: CoreDNS beside the control plane, behind the `kube-dns` Service that kubelets tell pods of.

It knows the cluster's names and no others: everything else does not exist, so nothing is asked outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanmaru_cluster.build import NodePrograms
from hanmaru_cluster.flags import Layout
from hanmaru_cluster.roles import CONTROL_PLANE_ADDRESS

DNS_SERVICE = "10.96.0.10"
DNS_USER = "hanmaru-test-dns"
_NAME = "kube-dns"


def corefile(layout: Layout) -> str:
    """What the name server is told: names of the cluster in one zone, and in all others that there are none."""
    return f"""
cluster.local:53 in-addr.arpa:53 {{
    bind {CONTROL_PLANE_ADDRESS}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.kubeconfig(DNS_USER)}
        pods verified
        ttl 5
    }}
}}
.:53 {{
    bind {CONTROL_PLANE_ADDRESS}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def resolver_config() -> str:
    """The `resolv.conf` of what runs beside the control plane; in pods the kubelet writes one."""
    domains = "default.svc.cluster.local svc.cluster.local cluster.local"
    return f"nameserver {DNS_SERVICE}\nsearch {domains}\noptions ndots:5\n"


def use_resolver_config(file: Path) -> str:
    """The script that puts it in the place of the machine's own, which may be a link into the `/run` that is hidden."""
    target = '"$(readlink -m /etc/resolv.conf)"'
    return f'set -eu; mkdir -p "$(dirname {target})"; [ -e {target} ] || touch {target}; mount --bind {file} {target}'


def argv(programs: NodePrograms, file: Path) -> list[str]:
    """Starts it with the file that holds `corefile()`."""
    return [str(programs.coredns), "-conf", str(file), "-quiet"]


def objects() -> list[tuple[str, dict[str, Any]]]:
    """What it needs in the cluster, as (collection, object): the Service, its one endpoint, and the right to look."""
    ports = [
        {"name": name, "port": 53, "protocol": protocol} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    service = {"metadata": {"name": _NAME}, "spec": {"clusterIP": DNS_SERVICE, "ports": ports}}
    endpoints = {
        "metadata": {"name": _NAME, "labels": {"kubernetes.io/service-name": _NAME}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [CONTROL_PLANE_ADDRESS], "conditions": {"ready": True}}],
        "ports": ports,
    }
    looks = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": looks},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": looks},
    ]
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": DNS_USER},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": DNS_USER},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": DNS_USER}],
    }
    return [
        (f"/apis/{rbac}/v1/clusterroles", {"metadata": {"name": DNS_USER}, "rules": rules}),
        (f"/apis/{rbac}/v1/clusterrolebindings", binding),
        ("/api/v1/namespaces/kube-system/services", service),
        ("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", endpoints),
    ]
