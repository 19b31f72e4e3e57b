"""Values of what watches the system, of what may reach it, and of the roles for people."""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import Field, StringConstraints

from hanmaru_chart.globals import Labels, SecretEntry, Text

Interval = Annotated[str, StringConstraints(pattern=r"^[0-9]+(ms|s|m)$")]


class ServiceMonitors(StrictSchema):
    """Objects by which the Prometheus operator finds metrics (`monitoring.coreos.com/v1`)."""

    enabled: bool = False
    """Needs their CRDs."""
    labels: Labels = Field(default_factory=dict)
    """What your Prometheus selects them by, such as `release: prometheus`."""
    interval: Interval = "15s"
    """Between two looks."""


class Dashboards(StrictSchema):
    """ConfigMaps with Grafana's dashboards."""

    enabled: bool = False
    """Whether they are made."""
    labels: Labels = Field(default={"grafana_dashboard": "1"})
    """What Grafana's sidecar selects them by."""
    annotations: Labels = Field(default_factory=dict)
    """Such as the folder's name."""


class Monitoring(StrictSchema):
    """Metrics and dashboards."""

    namespace_labels: Labels = Field(default_factory=dict)
    """Labels of the namespaces whose pods may fetch metrics, such as `kubernetes.io/metadata.name: monitoring`. Empty:
    no pod may, where the network enforces policies."""
    service_monitors: ServiceMonitors = ServiceMonitors()
    """For the Prometheus operator."""
    dashboards: Dashboards = Dashboards()
    """For Grafana."""


class NetworkPolicies(StrictSchema):
    """Who may reach which port. They hold where the cluster's network enforces them."""

    enabled: bool = True
    """One policy a component: what is needed is open, everything else closed."""
    default_deny: bool = True
    """Nothing else in the release's namespace can be reached either. False: the namespace is shared with others."""


class Rbac(StrictSchema):
    """Roles."""

    people: bool = True
    """ClusterRoles `hanmaru-view`, `hanmaru-model-editor` and `hanmaru-admin`; the first two also join Kubernetes' own
    `view` and `edit`."""


class Test(StrictSchema):
    """What `helm test` asks the gateway, besides whether it is ready."""

    key_secret: SecretEntry = SecretEntry(key="key")
    """With a tenant's key, one completion is asked for; without one it is left out."""
    model: Text = ""
    """Whose completion. Empty: the first that the key may use."""
