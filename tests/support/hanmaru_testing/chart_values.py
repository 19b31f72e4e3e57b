"""Values that make the chart render everything it can, for tests that look at all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanmaru_testing.helm import EXAMPLES

WITH_TLS = {"redis": {"tls": {"enabled": True, "existingSecret": "redis-tls"}}}
EXTERNAL_REDIS: dict[str, Any] = {
    "redis": {
        "enabled": False,
        "existingSecret": "redis-logins",
        "external": {
            "url": "rediss+sentinel://a.example:26379,b.example:26379/main",
            "ca": {"name": "redis-ca", "key": "ca.pem"},
            "clientCertificateSecret": "redis-client",
            "serverName": "redis.example",
            "sentinel": {"user": "watcher", "passwordKey": "sentinel"},
        },
    }
}
MONITORED: dict[str, Any] = {
    "monitoring": {
        "namespaceLabels": {"kubernetes.io/metadata.name": "monitoring"},
        "serviceMonitors": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True},
    }
}
_EXTRAS: dict[str, Any] = {
    "labels": {"example.com/team": "serving"},
    "annotations": {"example.com/note": "kept"},
    "nodeSelector": {"example.com/role": "platform"},
    "tolerations": [{"key": "example.com/platform", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [{"name": "EXAMPLE", "value": "1"}],
    "extraVolumes": [{"name": "extra", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
}
GATEWAY: dict[str, Any] = {
    **_EXTRAS,
    "tls": {"existingSecret": "gateway-tls"},
    "autoscaling": {"enabled": True},
    "service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
    "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
    "ingress": {
        "http": {"enabled": True, "className": "nginx", "hosts": ["api.example"]},
        "grpc": {
            "enabled": True,
            "hosts": ["grpc.example"],
            "tls": [{"secretName": "grpc-tls", "hosts": ["grpc.example"]}],
        },
    },
    "gatewayAPI": {
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "front"}], "hostnames": ["api.example"]},
        "grpcRoute": {"enabled": True, "parentRefs": [{"name": "front", "sectionName": "tls"}]},
    },
    "ray": {
        "head": _EXTRAS,
        "redis": {**_EXTRAS, "persistence": {"enabled": True, "storageClassName": "fast"}},
    },
}
"""Every way to the gateway, with TLS, scaled by load."""
EVERYTHING: dict[str, Any] = {
    "global": {
        "imageRegistry": "registry.example.com/hanmaru",
        "mirrorRegistry": "registry.example.com/mirror",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": ["registry"],
        "labels": {"example.com/owner": "platform"},
        "annotations": {"example.com/ticket": "7"},
        "airGapped": True,
    },
    "operator": _EXTRAS,
    "gateway": GATEWAY,
    "redis": {**_EXTRAS, **WITH_TLS["redis"], "persistence": {"enabled": True, "storageClassName": "fast"}},
    "collector": {**_EXTRAS, "export": {"endpoint": "http://tempo.example:4317"}},
    **MONITORED,
}
"""Every field that every component has, set to something."""
SHARED_CACHE: dict[str, Any] = {"sharedCache": {"enabled": True}, "redis": {"maxMemory": "12gb"}}
OWN_SHARED_CACHE: dict[str, Any] = {
    "sharedCache": {
        "enabled": True,
        "url": "rediss+cluster://a.example:6379,b.example:6379",
        "existingSecret": "shared-cache-login",
        "user": "pages",
        "ca": {"name": "shared-cache-ca"},
        "serverName": "pages.example",
    }
}
KUBERAY: dict[str, Any] = {"gateway": {"ray": {"mode": "kuberay"}}}

CASES: dict[str, tuple[list[Path], dict[str, Any]]] = {
    "defaults": ([], {}),
    "everything": ([EXAMPLES / "cpu-demo.yaml"], EVERYTHING),
    "external-redis": ([], EXTERNAL_REDIS),
    "shared-cache": ([], SHARED_CACHE),
    "shared-cache-of-its-own": ([], OWN_SHARED_CACHE),
    "shared-cache-in-an-external-redis": ([], {**EXTERNAL_REDIS, "sharedCache": {"enabled": True}}),
    "kuberay": ([], KUBERAY),
    **{file.stem: ([file], {}) for file in sorted(EXAMPLES.glob("*.yaml"))},
}
"""Files and values, by what they are."""
