"""Values that become objects of the kinds, typed by the kinds' own models; and the platform secret.

They are made in the release's namespace and go with the release: so do the workers of a deployment.
"""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import Name, StrictSchema
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from pydantic import StringConstraints

from hanmaru_chart.globals import NameOrEmpty, SecretKey

Pools = dict[Name, AcceleratorPoolSpec]
Tenants = dict[Name, TenantSpec]
DeploymentName = Annotated[Name, StringConstraints(max_length=44)]
ModelDeployments = dict[DeploymentName, ModelDeploymentSpec]


class Platform(StrictSchema):
    """The one secret that replicas' keys and caches' salts are derived from; gateways and the operator hold it."""

    existing_secret: NameOrEmpty = ""
    """A Secret that holds it: at least 32 random characters. Empty: one is made once, and kept even when the release is
    uninstalled."""
    key: SecretKey = "secret"
    """Its entry."""
