"""Every kind of the Kubernetes API that the operator touches, with the verbs it uses and where it may use them.

The client asks it before each request and refuses what is not listed, and `tools/generate_rbac.py` writes the
chart's rules of the same table: so the roles hold what the code uses, and nothing else. Which objects are read or
written, and when, is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hanmaru_contracts.crd import kinds as crd

Verb = Literal["get", "list", "watch", "create", "update", "patch", "delete"]

_FOLLOW: tuple[Verb, ...] = ("list", "watch")
# Server-side apply is a patch, and asks for `create` where the object is not there yet.
_APPLY: tuple[Verb, ...] = ("create", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Api:
    """One kind, and what the operator may do with it."""

    group: str
    """Empty: the core group."""
    version: str
    kind: str
    plural: str
    is_namespaced: bool = True
    cluster_verbs: tuple[Verb, ...] = ()
    """In every namespace, or on objects of the cluster."""
    status_verbs: tuple[Verb, ...] = ()
    """On the `status` subresource, wherever the object is."""
    tenant_namespace_verbs: tuple[Verb, ...] = ()
    """In `tenantNamespaces`, beyond `cluster_verbs`."""
    own_namespace_verbs: tuple[Verb, ...] = ()
    """In the operator's own namespace, beyond `cluster_verbs`."""

    @property
    def api_version(self) -> str:
        """As a manifest says it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of an object, or without `name` of a collection; without `namespace` of all namespaces."""
        root = f"/apis/{self.group}" if self.group else "/api"
        scope = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        return f"{root}/{self.version}{scope}/{self.plural}" + "".join(f"/{p}" for p in (name, subresource) if p)


def _ours(kind: crd.Kind) -> Api:
    """Users' objects: their spec is never written."""
    return Api(
        crd.GROUP,
        crd.VERSION,
        kind.name,
        kind.plural,
        is_namespaced=kind.is_namespaced,
        cluster_verbs=_FOLLOW,
        status_verbs=("patch",),
    )


ACCELERATOR_POOLS = _ours(crd.ACCELERATOR_POOL)
MODEL_DEPLOYMENTS = _ours(crd.MODEL_DEPLOYMENT)
TENANTS = _ours(crd.TENANT)

STATEFUL_SETS = Api("apps", "v1", "StatefulSet", "statefulsets", cluster_verbs=_FOLLOW + _APPLY)
CONTROLLER_REVISIONS = Api("apps", "v1", "ControllerRevision", "controllerrevisions", cluster_verbs=_FOLLOW + _APPLY)
SERVICES = Api("", "v1", "Service", "services", cluster_verbs=_FOLLOW + _APPLY)
CONFIG_MAPS = Api("", "v1", "ConfigMap", "configmaps", cluster_verbs=_FOLLOW + _APPLY)
SERVICE_ACCOUNTS = Api("", "v1", "ServiceAccount", "serviceaccounts", cluster_verbs=_FOLLOW + _APPLY)
NETWORK_POLICIES = Api("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", cluster_verbs=_FOLLOW + _APPLY)
POD_DISRUPTION_BUDGETS = Api(
    "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", cluster_verbs=_FOLLOW + _APPLY
)
# Every pod takes room on a node; only our own are changed: gates lifted, groups restarted, model facts read.
PODS = Api("", "v1", "Pod", "pods", cluster_verbs=_FOLLOW + _APPLY)
# A replica's key is written where its pods are. Only tenants' credentials are read, and only in `tenantNamespaces`.
SECRETS = Api("", "v1", "Secret", "secrets", cluster_verbs=_APPLY, tenant_namespace_verbs=_FOLLOW)
NODES = Api("", "v1", "Node", "nodes", is_namespaced=False, cluster_verbs=_FOLLOW)
NAMESPACES = Api("", "v1", "Namespace", "namespaces", is_namespaced=False, cluster_verbs=_FOLLOW)
EVENTS = Api("events.k8s.io", "v1", "Event", "events", cluster_verbs=("create", "patch"))
LEASES = Api("coordination.k8s.io", "v1", "Lease", "leases", own_namespace_verbs=("get", "create", "update"))

APIS = (
    ACCELERATOR_POOLS,
    MODEL_DEPLOYMENTS,
    TENANTS,
    STATEFUL_SETS,
    CONTROLLER_REVISIONS,
    SERVICES,
    CONFIG_MAPS,
    SERVICE_ACCOUNTS,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SECRETS,
    NODES,
    NAMESPACES,
    EVENTS,
    LEASES,
)

_BY_KIND = {api.kind: api for api in APIS}


def api_of(kind: str) -> Api:
    """The kind of that name; asking for one that is not in the table is our own bug."""
    return _BY_KIND[kind]
