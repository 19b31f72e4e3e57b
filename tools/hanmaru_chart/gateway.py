"""Values of the gateway: the pods that serve, what leads to them, and the Ray cluster that they are (decision 0012).

Templates are in `charts/hanmaru/templates/gateway/`; what the programs do with the settings is in `hanmaru_gateway`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Literal

from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_gateway.settings import MIB
from pydantic import Field, StringConstraints

from hanmaru_chart.globals import (
    Image,
    KubernetesList,
    Labels,
    NameOrEmpty,
    PodDisruptionBudgetValues,
    PodValues,
    Port,
    Replicas,
    Resources,
    SecretEntry,
    Text,
)
from hanmaru_chart.redis import RedisPersistence

Seconds = Annotated[int, Field(ge=0, le=86_400)]
PositiveSeconds = Annotated[int, Field(gt=0, le=86_400)]


class GatewaySettings(StrictSchema):
    """What each gateway process is set to. A change replaces the pods one by one."""

    leave_delay_seconds: Seconds = 10
    """How long a pod that is to end still accepts, unready, until no endpoint and no load balancer names it."""
    shutdown_timeout_seconds: Seconds = 600
    """How long its running answers may then take. Longer ones are cut off with an error event."""
    body_bytes: Annotated[int, Field(gt=0)] = 16 * MIB
    """Longest request body."""
    default_output_tokens: Annotated[int, Field(gt=0)] = 8192
    """Most output of a request that names no limit."""
    keep_alive_seconds: PositiveSeconds = 75
    """How long an idle connection is kept; longer than a load balancer in front keeps its own."""
    first_token_timeout_seconds: PositiveSeconds = 600
    """How long an engine may take until a stream's first event."""
    stall_timeout_seconds: PositiveSeconds = 30
    """How long an engine may leave a running stream without any event."""
    answer_timeout_seconds: PositiveSeconds = 1800
    """How long an answer that is not streamed may take."""


class Autoscaling(StrictSchema):
    """A HorizontalPodAutoscaler. Serve's own autoscaler sees no request of ours, so pods are what scales."""

    enabled: bool = False
    """Needs the metrics API (metrics-server). Then `replicas` is not set."""
    min_replicas: Annotated[int, Field(ge=1)] = 2
    """At least."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 10
    """At most."""
    target_cpu_percent: Annotated[int, Field(ge=1, le=1000, alias="targetCPUPercent")] = 70
    """Mean use of CPU, as a part of what the pods request. One process serves a pod, so 100 % of a core is its end."""
    metrics: KubernetesList = Field(default_factory=list)
    """Further metrics, as in the API (`autoscaling/v2`)."""


class GatewayService(StrictSchema):
    """The Service that clients and routes use: REST on 8000, gRPC on 9000."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How it is reached."""
    http_port: Port = 8000
    """REST."""
    grpc_port: Port = 9000
    """gRPC. Its connections are long: to spread clients, let them resolve `<name>-grpc`, which names each pod."""
    annotations: Labels = Field(default_factory=dict)
    """For load balancers of cloud providers."""
    grpc_annotations: Labels = Field(default_factory=dict)
    """Of `<name>-grpc`, such as Traefik's `service.serverstransport`: its gRPC route leads there."""
    load_balancer_class: Text = ""
    """Empty: the cluster's default."""
    load_balancer_source_ranges: list[Text] = Field(default_factory=list)
    """Who may reach a LoadBalancer."""
    external_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    """Local keeps clients' addresses; NodePort and LoadBalancer only."""


class GatewayTls(StrictSchema):
    """TLS of both listeners themselves."""

    existing_secret: NameOrEmpty = ""
    """A Secret of type kubernetes.io/tls. Empty: plain text, for routes that end TLS before it. A renewed certificate
    is used by pods that start after it."""


class Route(StrictSchema):
    """One Ingress."""

    enabled: bool = False
    """Whether there is one."""
    class_name: NameOrEmpty = ""
    """Its IngressClass. Empty: the cluster's default."""
    annotations: Labels = Field(default_factory=dict)
    """Further ones, or others in place of the chart's."""
    hosts: list[Annotated[Text, StringConstraints(min_length=1)]] = Field(default_factory=list)
    """Names that lead here."""
    tls: KubernetesList = Field(default_factory=list)
    """As in the API: `[{secretName, hosts}]`."""


class Ingress(StrictSchema):
    """Ingresses, one for REST and one for gRPC: most controllers speak one protocol to a backend."""

    controller: Literal["nginx", "traefik", "haproxy", "other"] = "nginx"
    """Whose annotations are set, so that streams are not buffered or cut and bodies may be `settings.bodyBytes`. Of
    `other` give them yourself. HAProxy has one `timeout-client` for everything: set it in the controller's ConfigMap to
    no less than `settings.answerTimeoutSeconds`."""
    http: Route = Route()
    """REST."""
    grpc: Route = Route()
    """gRPC, which needs TLS towards clients with most controllers."""


class GatewayRoute(StrictSchema):
    """One route of the Gateway API."""

    enabled: bool = False
    """Whether there is one."""
    annotations: Labels = Field(default_factory=dict)
    """Of the route."""
    parent_refs: KubernetesList = Field(default_factory=list)
    """The Gateways that take it: `[{name, namespace, sectionName}]`."""
    hostnames: list[Annotated[Text, StringConstraints(min_length=1)]] = Field(default_factory=list)
    """Names that lead here. Empty: all of the Gateway."""


class GatewayApi(StrictSchema):
    """Routes of the Gateway API (`gateway.networking.k8s.io/v1`), which must be installed. They buffer nothing."""

    http_route: GatewayRoute = GatewayRoute()
    """REST. Its timeouts are off: a stream may take as long as it takes."""
    grpc_route: GatewayRoute = GatewayRoute()
    """gRPC."""


class RayHead(PodValues):
    """The control side of the Ray cluster: one pod that serves no tenant. While it is away, gateways go on."""

    resources: Resources = Resources(requests={"cpu": "100m", "memory": "1Gi"}, limits={"memory": "2Gi"})
    """Of the head."""


class ExternalRayRedis(StrictSchema):
    """A standalone Redis 6.2 or newer, without Sentinel and Cluster, which Ray's GCS cannot speak to."""

    address: Annotated[str, StringConstraints(pattern=r"^(rediss?://[^@\s/]+:[0-9]+)?$")] = ""
    """`redis://host:6379`, or `rediss://…` with TLS; no login in it. Empty: the chart's own."""
    user: Text = ""
    """ACL user. Whoever can write what is his can run code in the gateways."""
    password: SecretEntry = SecretEntry(key="password")
    """The password. Empty: none."""
    ca: SecretEntry = SecretEntry()
    """Certificates of the authorities behind `rediss`. Empty: the image's."""


class RayRedisPersistence(RedisPersistence):
    """Whether the Redis of Ray keeps what it has on a disk."""

    enabled: bool = False
    """Off: a pod of it that is moved comes back empty, and every gateway then starts anew, all at once. On in
    production."""


class RayRedis(PodValues):
    """Where Ray's head keeps what it must know after a restart. A Redis of its own: who writes it can run code."""

    enabled: bool = True
    """A server of the chart's own, which the head alone can reach. False: give `external.address`."""
    external: ExternalRayRedis = ExternalRayRedis()
    """Somebody else's Redis."""
    existing_secret: NameOrEmpty = ""
    """A Secret with the password of the chart's own Redis in its entry `password`. Empty: one is made and kept over
    upgrades."""
    image: Image = Image(registry="docker.io", repository="library/redis", tag="7.2-bookworm")
    """Redis 6.2 or newer, with a shell."""
    persistence: RayRedisPersistence = RayRedisPersistence(size="1Gi")
    """Whether it keeps what it has on a disk."""
    resources: Resources = Resources(requests={"cpu": "50m", "memory": "64Mi"}, limits={"memory": "512Mi"})
    """Of this Redis."""


class Ray(StrictSchema):
    """The Ray cluster that runs the gateway's replicas."""

    mode: Literal["standalone", "kuberay"] = "standalone"
    """standalone: Deployments of the chart, nothing else needed. kuberay: a RayService (`ray.io/v1`) for the KubeRay
    operator, 1.5 or newer; written by its definitions, and not tried on the operator yet."""
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] = version("ray")
    """Ray's version in the gateway's image. It is part of the head's name: versions never mix in one cluster."""
    token_secret: SecretEntry = SecretEntry(key="token")
    """A Secret with the token that everything of Ray asks for. Empty: one is made and kept over upgrades."""
    head: RayHead = RayHead()
    """Its control side."""
    redis: RayRedis = RayRedis()
    """Where the head keeps its state."""


class Gateway(PodValues):
    """Takes requests of tenants, REST and gRPC. Each pod is one node of a Ray cluster with one replica."""

    replicas: Replicas = 2
    """Pods, where `autoscaling` is off."""
    image: Image = Image(repository="gateway")
    """The gateway's image."""
    settings: GatewaySettings = GatewaySettings()
    """What each process is set to."""
    autoscaling: Autoscaling = Autoscaling()
    """By load."""
    service: GatewayService = GatewayService()
    """What clients and routes use."""
    tls: GatewayTls = GatewayTls()
    """TLS of both listeners themselves."""
    ingress: Ingress = Ingress()
    """Routes of Ingress controllers."""
    gateway_api: Annotated[GatewayApi, Field(alias="gatewayAPI")] = GatewayApi()
    """Routes of the Gateway API."""
    clients: KubernetesList = Field(default_factory=list)
    """Who may reach REST and gRPC, as `from` of a NetworkPolicy. Empty: everybody; keys are asked for anyway."""
    ray: Ray = Ray()
    """The Ray cluster."""
    pod_disruption_budget: PodDisruptionBudgetValues = PodDisruptionBudgetValues()
    """What `kubectl drain` may take at a time."""
    resources: Resources = Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi"})
    """Of a gateway's pod. One process serves, beside Ray's."""
