"""The chart's generated roles on a test's API server, bound to whoever a test names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hanmaru_cluster.api import APPLY_PATCH, ApiClient

FILES = Path(__file__).parents[3] / "charts/hanmaru/files"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_GROUP = "rbac.authorization.k8s.io"

Subject = dict[str, str]


def user(name: str) -> Subject:
    """Somebody with a certificate (`ControlPlane.kubeconfig_for`)."""
    return {"kind": "User", "name": name, "apiGroup": _GROUP}


def service_account(namespace: str, name: str) -> Subject:
    """A pod's identity."""
    return {"kind": "ServiceAccount", "name": name, "namespace": namespace}


def bind_operator(api: ApiClient, subject: Subject, *, own_namespace: str, tenant_namespaces: Sequence[str]) -> None:
    """Grant what the chart will grant the operator, and nothing else; the roles carry the subject's name."""
    rules = yaml.safe_load((FILES / "operator-rules.yaml").read_text())
    name = f"operator-{subject['name']}"
    _role(api, "ClusterRole", name, rules["cluster"])
    bind(api, name, subject)
    for place, namespaces in (("ownNamespace", [own_namespace]), ("tenantNamespaces", tenant_namespaces)):
        for namespace in namespaces:
            role = f"{name}-{place.lower()}"
            _role(api, "Role", role, rules[place], namespace)
            bind(api, role, subject, namespace, kind="Role")


def install_people_roles(api: ApiClient) -> None:
    """The ClusterRoles for people."""
    roles: dict[str, Any] = yaml.safe_load((FILES / "people-roles.yaml").read_text())
    for name, role in roles.items():
        _role(api, "ClusterRole", name, role["rules"], labels=role["labels"])


def bind(api: ApiClient, role: str, subject: Subject, namespace: str = "", *, kind: str = "ClusterRole") -> None:
    """Give a role to somebody: in one namespace, or everywhere."""
    binding = "RoleBinding" if namespace else "ClusterRoleBinding"
    body = {"roleRef": {"apiGroup": _GROUP, "kind": kind, "name": role}, "subjects": [subject]}
    _apply(api, binding, f"{role}-{subject['name']}", namespace, body)


def _role(
    api: ApiClient, kind: str, name: str, rules: Any, namespace: str = "", labels: dict[str, str] | None = None
) -> None:
    _apply(api, kind, name, namespace, {"rules": rules}, labels)


def _apply(
    api: ApiClient, kind: str, name: str, namespace: str, body: dict[str, Any], labels: dict[str, str] | None = None
) -> None:
    scope = f"/namespaces/{namespace}" if namespace else ""
    manifest = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels or {}},
        **body,
    }
    path = f"{_RBAC}{scope}/{kind.lower()}s/{name}?fieldManager=tests&force=true"
    api.request("PATCH", path, manifest, content_type=APPLY_PATCH)
