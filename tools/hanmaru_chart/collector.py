"""Values of tracing: the chart's own OpenTelemetry collector, or one that is there already."""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import Field, StringConstraints

from hanmaru_chart.globals import Image, KubernetesObject, PodValues, Replicas, Resources

OtlpEndpoint = Annotated[str, StringConstraints(pattern=r"^(https?://[^\s/]+)?$", max_length=512)]


class CollectorExport(StrictSchema):
    """Where the collector sends spans."""

    endpoint: OtlpEndpoint = ""
    """OTLP over gRPC, `https://tempo.example:4317`. Empty: the collector only counts them in its log."""


class Collector(PodValues):
    """Takes the spans of gateways, workers and the operator, and sends them on. No span holds a prompt or a key."""

    enabled: bool = True
    """A collector of the chart's own."""
    replicas: Replicas = 1
    """Of the collector."""
    image: Image = Image(registry="docker.io", repository="otel/opentelemetry-collector", tag="0.161.0")
    """The collector."""
    export: CollectorExport = CollectorExport()
    """Where it sends spans."""
    config: KubernetesObject = Field(default_factory=dict)
    """The collector's whole configuration, in place of ours; it must receive OTLP over gRPC on 0.0.0.0:4317."""
    resources: Resources = Resources(requests={"cpu": "50m", "memory": "128Mi"}, limits={"memory": "512Mi"})
    """Of the collector."""


class Tracing(StrictSchema):
    """Where spans go when the chart's collector is off."""

    endpoint: OtlpEndpoint = ""
    """OTLP over gRPC, `http://host:4317`. Empty: no tracing."""
