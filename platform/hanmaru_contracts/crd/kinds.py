"""The three kinds as the API server shows them: names, scope, columns, subresources.

`tools/generate_crds.py` makes the CRDs of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_contracts.crd.schema import Schema
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec, AcceleratorPoolStatus
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec, ModelDeploymentStatus
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec, TenantStatus

GROUP = "serving.hanmaru.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    is_wide: bool = False
    """Only with `-o wide`."""


def _condition(kind: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind."""

    name: str
    plural: str
    short_names: tuple[str, ...]
    is_namespaced: bool
    spec: type[Schema]
    status: type[Schema]
    columns: tuple[Column, ...]
    has_scale: bool = False
    """Whether `kubectl scale` and autoscalers set `.spec.replicas`."""
    name_max_chars: int = 63
    """Names are DNS labels: others refer to them, in fields and in labels' values."""

    @property
    def singular(self) -> str:
        """Lower-case name."""
        return self.name.lower()


ACCELERATOR_POOL = Kind(
    "AcceleratorPool",
    "acceleratorpools",
    ("ap",),
    is_namespaced=False,
    spec=AcceleratorPoolSpec,
    status=AcceleratorPoolStatus,
    columns=(
        Column("Engine", ".spec.engine.type"),
        Column("Resource", ".spec.devices.resource.name"),
        Column("Nodes", ".status.nodes", "integer"),
        Column("Used", ".status.devices.used", "integer"),
        Column("Allocatable", ".status.devices.allocatable", "integer"),
        Column("Groups", ".status.groups", "integer"),
        Column("Waiting", ".status.waitingGroups", "integer"),
        Column("Available", _condition("Available")),
        Column("Reason", _condition("Available", "reason"), is_wide=True),
        _AGE,
    ),
)
MODEL_DEPLOYMENT = Kind(
    "ModelDeployment",
    "modeldeployments",
    ("md",),
    is_namespaced=True,
    spec=ModelDeploymentSpec,
    status=ModelDeploymentStatus,
    columns=(
        Column("Route", ".spec.route.name"),
        Column("Desired", ".spec.replicas", "integer"),
        Column("Ready", ".status.readyReplicas", "integer"),
        Column("Available", _condition("Available")),
        Column("Progressing", _condition("Progressing", "reason")),
        Column("Revision", ".status.revision", is_wide=True),
        Column("Message", _condition("Available", "message"), is_wide=True),
        _AGE,
    ),
    has_scale=True,
    name_max_chars=44,  # a replica's name adds six characters, and has at most 50
)
TENANT = Kind(
    "Tenant",
    "tenants",
    (),
    is_namespaced=True,
    spec=TenantSpec,
    status=TenantStatus,
    columns=(
        Column("Available", _condition("Available")),
        Column("Reason", _condition("Available", "reason")),
        Column("Suspended", ".spec.suspended", "boolean"),
        Column("Models", ".status.models"),
        Column("Message", _condition("Available", "message"), is_wide=True),
        _AGE,
    ),
)
KINDS = (ACCELERATOR_POOL, MODEL_DEPLOYMENT, TENANT)
