"""What every component of the chart shares: images, pods, services' accounts, references to Secrets.

A component's values extend `PodValues`; the templates in `_pod.tpl` read exactly these fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import Field, StringConstraints

KubernetesObject = dict[str, Any]
"""Part of a Kubernetes object, passed through; the API server checks it."""
KubernetesList = list[KubernetesObject]
Text = Annotated[str, StringConstraints(max_length=1024)]
Labels = dict[str, Text]
NameOrEmpty = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?)?$", max_length=253)]
"""Name of a Kubernetes object; empty: none."""
SecretKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
PullPolicy = Literal["", "Always", "IfNotPresent", "Never"]
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Replicas = Annotated[int, Field(ge=0, le=1000)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Image(StrictSchema):
    """Where a container's image is: `registry/repository:tag@digest`."""

    registry: Text = ""
    """Its registry. Empty: `global.imageRegistry`."""
    repository: Text
    """Its name there."""
    tag: Text = ""
    """Empty: the chart's appVersion."""
    digest: Digest = ""
    """`sha256:…` pins the image; the tag then only informs."""
    pull_policy: PullPolicy = ""
    """Empty: `global.imagePullPolicy`."""


class SecretEntry(StrictSchema):
    """One entry of a Secret of the release's namespace."""

    name: NameOrEmpty = ""
    """The Secret. Empty: none."""
    key: SecretKey = "ca.crt"
    """The entry."""


class ServiceAccountValues(StrictSchema):
    """The identity of a component's pods."""

    create: bool = True
    """False: `name` exists already."""
    name: NameOrEmpty = ""
    """Empty: the component's own name."""
    annotations: Labels = Field(default_factory=dict)
    """For identities of cloud providers."""


class Resources(StrictSchema):
    """What a container asks for and may use."""

    requests: dict[str, str | int | float] = Field(default_factory=dict)
    """What it is given."""
    limits: dict[str, str | int | float] = Field(default_factory=dict)
    """What it may use at most. There is no limit of CPU: it would only slow idle nodes down."""


class PodValues(StrictSchema):
    """What can be said of the pods of every component."""

    resources: Resources
    """Of the component's container."""
    service_account: ServiceAccountValues = ServiceAccountValues()
    """The identity of the pods. Only the operator's has a token."""
    labels: Labels = Field(default_factory=dict)
    """Further labels of the pods."""
    annotations: Labels = Field(default_factory=dict)
    """Further annotations of the pods."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that the pods may run on."""
    tolerations: KubernetesList = Field(default_factory=list)
    """Taints of nodes that the pods endure."""
    affinity: KubernetesObject = Field(default_factory=dict)
    """Further wishes about nodes and other pods."""
    topology_spread_constraints: KubernetesList = Field(default_factory=list)
    """How the pods are spread. Empty: over zones and nodes, as far as possible."""
    priority_class_name: NameOrEmpty = ""
    """Empty: the cluster's default."""
    extra_env: KubernetesList = Field(default_factory=list)
    """Further environment variables of the container, as in a pod: `{name, value}` or `{name, valueFrom}`."""
    extra_volumes: KubernetesList = Field(default_factory=list)
    """Further volumes of the pods."""
    extra_volume_mounts: KubernetesList = Field(default_factory=list)
    """Where the container has them."""


class PodDisruptionBudgetValues(StrictSchema):
    """What `kubectl drain` may take at a time."""

    enabled: bool = True
    """Whether there is one."""
    max_unavailable: Annotated[int, Field(ge=1)] = 1
    """Pods that may be missing."""


class Global(StrictSchema):
    """What holds for all components."""

    image_registry: Text = "ghcr.io/hanmaru"
    """Registry and folder of the images `gateway`, `operator` and `worker`. They are not published there yet: build
    them with `make images`, push them to your registry and name it here."""
    mirror_registry: Text = ""
    """A registry that holds the images of others (Redis, the collector) under their own names, for clusters that reach
    no other. Empty: where they come from."""
    image_pull_policy: PullPolicy = ""
    """Of all containers, the workers' included. Empty: the cluster's default."""
    image_pull_secrets: list[NameOrEmpty] = Field(default_factory=list)
    """Names of Secrets with logins of registries. A namespace with ModelDeployments needs Secrets of these names as
    well."""
    air_gapped: bool = False
    """True: nothing is fetched from a model hub. The chart's pools set HF_HUB_OFFLINE=1, and a ModelDeployment of the
    chart that names a hub is refused: give it a claim, an image or a mirror's `endpoint`."""
    labels: Labels = Field(default_factory=dict)
    """Further labels of all objects."""
    annotations: Labels = Field(default_factory=dict)
    """Further annotations of all objects."""
