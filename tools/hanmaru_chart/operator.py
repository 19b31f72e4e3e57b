"""Values of the operator: its pods, and the settings that an installation decides.

`charts/hanmaru/templates/operator/configmap.yaml` joins the settings with what the chart knows (Redis, images, labels)
into the file that `hanmaru_operator.settings` reads; a test reads it with that module.
"""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import Name, StrictSchema
from pydantic import Field

from hanmaru_chart.globals import Image, PodDisruptionBudgetValues, PodValues, Replicas, Resources

Seconds = Annotated[float, Field(gt=0)]


class WorkerImages(StrictSchema):
    """The worker's image for each engine, where a pool names none."""

    sglang: Annotated[Image, Field(alias="SGLang")] = Image(repository="worker")
    """SGLang, for GPUs and CPUs."""
    furiosa_llm: Annotated[Image, Field(alias="FuriosaLLM")] = Image(repository="")
    """furiosa-llm, for RNGD. There is no published image: empty means that pools have to name one."""


class OperatorSettings(StrictSchema):
    """What the operator is set to."""

    workers: Annotated[int, Field(gt=0, le=64)] = 8
    """Objects reconciled at the same time."""
    resync_interval_s: Seconds = 600
    """How often everything is listed and looked at again."""
    return_after_s: Seconds = 300
    """How long a better pool must have had room before a replica returns to it."""
    bands: Annotated[list[Name], Field(min_length=1)] = Field(default=["standard"])
    """Priority bands that a tenant may be in."""
    shared_domains: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    """Shared caches, and the tenants that may use them: `{team: [research, search]}`; `["*"]`: every tenant."""


class Operator(PodValues):
    """Makes pools, deployments and tenants so. One a cluster."""

    replicas: Replicas = 2
    """One leads, the others stand by."""
    image: Image = Image(repository="operator")
    """The operator's image."""
    worker_images: WorkerImages = WorkerImages()
    """Images of the workers it makes."""
    tenant_namespaces: list[Name] = Field(default_factory=list)
    """The only namespaces in which Tenants count, and whose Secrets it may read; they must exist. Empty: the
    release's own."""
    settings: OperatorSettings = OperatorSettings()
    """What the operator is set to."""
    pod_disruption_budget: PodDisruptionBudgetValues = PodDisruptionBudgetValues()
    """What `kubectl drain` may take at a time."""
    resources: Resources = Resources(requests={"cpu": "100m", "memory": "192Mi"}, limits={"memory": "1Gi"})
    """Of the operator."""
