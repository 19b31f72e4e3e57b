"""All values of the chart `hanmaru`, in the order of values.yaml."""

from __future__ import annotations

from typing import Annotated

from hanmaru_contracts.crd.schema import StrictSchema
from pydantic import Field

from hanmaru_chart.collector import Collector, Tracing
from hanmaru_chart.gateway import Gateway
from hanmaru_chart.globals import Global, NameOrEmpty
from hanmaru_chart.monitoring import Monitoring, NetworkPolicies, Rbac, Test
from hanmaru_chart.operator import Operator
from hanmaru_chart.redis import Redis
from hanmaru_chart.resources import ModelDeployments, Platform, Pools, Tenants
from hanmaru_chart.shared_cache import SharedCache


class Values(StrictSchema):
    """Hanmaru on a Kubernetes cluster."""

    global_: Annotated[Global, Field(alias="global")] = Global()
    """What holds for all components."""
    name_override: NameOrEmpty = ""
    """In place of the chart's name in names of objects."""
    fullname_override: NameOrEmpty = ""
    """In place of the release's name, and the chart's, in names of objects."""
    platform: Platform = Platform()
    """The one secret that keys are derived from."""
    operator: Operator = Operator()
    """Makes pools, deployments and tenants so."""
    gateway: Gateway = Gateway()
    """Takes requests of tenants, REST and gRPC, and leads them to workers."""
    redis: Redis = Redis()
    """What gateways, workers and the operator tell each other by."""
    shared_cache: SharedCache = SharedCache()
    """A tier of the prefix cache on Redis, for deployments that ask for one."""
    collector: Collector = Collector()
    """Takes spans and sends them on."""
    tracing: Tracing = Tracing()
    """Where spans go when the chart's collector is off."""
    pools: Pools = Field(default_factory=dict)
    """AcceleratorPools by their names, each as `spec` of docs/kinds.md."""
    tenants: Tenants = Field(default_factory=dict)
    """Tenants of the release's namespace by their names, each as `spec` of docs/kinds.md. They count when the namespace
    is one of `operator.tenantNamespaces`."""
    model_deployments: ModelDeployments = Field(default_factory=dict)
    """ModelDeployments of the release's namespace by their names, each as `spec` of docs/kinds.md; `examples/`
    has some. None by default: a model belongs to whoever serves it, and is gone with what made it."""
    network_policies: NetworkPolicies = NetworkPolicies()
    """Who may reach which port."""
    rbac: Rbac = Rbac()
    """Roles for people."""
    monitoring: Monitoring = Monitoring()
    """Metrics and dashboards."""
    test: Test = Test()
    """What `helm test` asks."""
