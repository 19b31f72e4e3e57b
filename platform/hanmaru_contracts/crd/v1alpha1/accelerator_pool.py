"""`AcceleratorPool`: nodes of one sort of device, the engine that runs on them, and who may use them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from hanmaru_contracts.crd.schema import (
    SELECTOR_GOES_WITH_FROM,
    SET,
    Conditions,
    LabelRequirement,
    LabelSelector,
    Natural,
    PodTemplate,
    Positive,
    Rule,
    Schema,
    Text,
    immutable,
    list_map,
    one_block,
    rules,
)
from hanmaru_contracts.wire.engine_spec import EngineType

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$", max_length=32)]
"""A whole or decimal number of bytes or things with an optional suffix, such as `80Gi`."""
Feature = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class NodeSelectorTerm(Schema):
    """Nodes by their labels; every requirement must hold."""

    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(min_length=1, max_length=32)]
    """Requirements on single labels."""


class Toleration(Schema):
    """A taint that the pool's pods endure."""

    # What the API server says of pods, said where it can still be read.
    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("self.operator != 'Exists' || self.value == ''", "operator Exists takes no `value`"),
            Rule("self.operator == 'Exists' || self.key != ''", "operator Equal needs a `key`"),
            Rule(
                "!has(self.tolerationSeconds) || self.effect == 'NoExecute'",
                "`tolerationSeconds` belongs to the effect NoExecute",
            ),
        )
    )

    key: Annotated[str, StringConstraints(max_length=316)] = ""
    """The taint. Empty, with `Exists`: every taint."""
    operator: Annotated[str, StringConstraints(pattern="^(Exists|Equal)$", max_length=6)] = "Equal"
    """`Exists` or `Equal`."""
    value: Annotated[str, StringConstraints(max_length=63)] = ""
    """For `Equal`: the taint's value."""
    effect: Annotated[str, StringConstraints(pattern="^(|NoSchedule|PreferNoSchedule|NoExecute)$", max_length=16)] = ""
    """Empty: every effect."""
    toleration_seconds: Natural | None = None
    """For `NoExecute`: how long it is endured. Absent: for ever."""


class PoolNodes(Schema):
    """Which nodes belong to the pool."""

    selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16)]
    """A node belongs to the pool when any term holds. A node belongs to one pool: the older one keeps it."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints of these nodes that the pods endure."""


class DevicesType(StrEnum):
    """How Kubernetes shows the devices."""

    RESOURCE = "Resource"


class DeviceResource(Schema):
    """Devices as an extended resource of a device plugin, or `cpu`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """The resource's name: `nvidia.com/gpu`, `furiosa.ai/rngd`, `cpu`."""


class Devices(Schema):
    """What computes, and how much of it a node has."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            one_block({"Resource": "resource"}),
            Rule(
                "!has(self.resource) || !has(oldSelf.resource) || self.resource.name == oldSelf.resource.name",
                "devices.resource.name cannot be changed; make another pool",
            ),
        )
    )

    type: DevicesType = DevicesType.RESOURCE
    """How Kubernetes shows the devices."""
    resource: DeviceResource | None = None
    """For type `Resource`."""
    memory: Quantity
    """Memory of one device, such as `80Gi`. For `cpu`: memory of the whole node that an engine may use."""
    per_node: Annotated[int, Field(gt=0, le=64)]
    """Devices of one healthy node. A node that has fewer to give takes no group that needs them all."""
    per_pod_extra: dict[str, Quantity] = Field(max_length=16, default_factory=dict)
    """Further resources that each pod asks for, such as `rdma/hca: "1"`."""


class EnvironmentVariable(Schema):
    """A variable of the engine's container."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
    """Its name."""
    value: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Its value. Secrets do not belong here."""


class PoolEngine(Schema):
    """The program that serves models on the pool's devices."""

    type: Annotated[EngineType, Field(json_schema_extra=immutable("engine.type"))] = EngineType.SGLANG
    """`SGLang`, or `FuriosaLLM` for RNGD."""
    image: Text = ""
    """The worker's image; pin it by digest in production. Empty: the operator's default for the engine."""
    args: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    """Further flags of the engine."""
    env: Annotated[
        tuple[EnvironmentVariable, ...],
        Field(max_length=64, json_schema_extra=list_map("name")),
    ] = ()
    """Further variables of the engine's container."""


class PoolCapabilities(Schema):
    """What the engine can do on these devices. Workers register it, and requests go only where they can be served."""

    max_context_tokens: Positive = 262144
    """Longest prompt and output together that the engine takes here."""
    dtypes: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=32)], ...],
        Field(min_length=1, max_length=16, json_schema_extra=SET),
    ] = ("bfloat16",)
    """Types of weights: `bfloat16`, `float16`, `float32`, `fp8`, `fp8-weight-only`, `nvfp4`, …"""
    features: Annotated[tuple[Feature, ...], Field(max_length=32, json_schema_extra=SET)] = ()
    """An open list: `mtp`, `hybrid-kv`, `expert-parallel`, …"""


class SchedulingType(StrEnum):
    """Who decides when a group's pods may be placed."""

    GATES = "Gates"


class PoolScheduling(Schema):
    """How groups of pods are placed."""

    type: SchedulingType = SchedulingType.GATES
    """`Gates`: the operator lifts the pods' scheduling gates once the whole group fits."""
    bind_timeout_seconds: Annotated[int, Field(ge=5, le=86400)] = 300
    """A group whose gates are lifted and that is not bound by then is taken back and waits anew."""
    priority_class_name: Annotated[str, StringConstraints(max_length=253)] = ""
    """Of the pods. Empty: the cluster's default."""
    scheduler_name: Annotated[str, StringConstraints(max_length=253)] = ""
    """Of the pods. Empty: the cluster's default."""


class PoolTopology(Schema):
    """Where a group of several pods may spread."""

    domain_key: Annotated[str, StringConstraints(max_length=316)] = ""
    """A label of the nodes: all pods of a group go to nodes with one value of it. Empty: the pool is one domain."""


class NamespacesFrom(StrEnum):
    """Which namespaces."""

    NONE = "None"
    SELECTOR = "Selector"
    ALL = "All"


class AllowedNamespaces(Schema):
    """Namespaces whose deployments may use the pool."""

    model_config = ConfigDict(json_schema_extra=rules(SELECTOR_GOES_WITH_FROM))

    from_: Annotated[NamespacesFrom, Field(alias="from")] = NamespacesFrom.ALL
    """`None`, `Selector` or `All`."""
    selector: LabelSelector | None = None
    """For `Selector`: labels of the namespaces."""


class PoolCost(Schema):
    """What the devices cost, for reports."""

    per_device_hour: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=32)]
    """A decimal number, such as `"2.10"`."""
    currency: Annotated[str, StringConstraints(pattern="^[A-Z]{3}$", max_length=3)] = "USD"
    """ISO 4217."""


class AcceleratorPoolSpec(Schema):
    """Nodes of one sort of device, the engine that runs on them, and who may use them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.engine.type != 'FuriosaLLM' || !self.capabilities.features.exists(f, f == 'mtp')",
                "furiosa-llm has no speculative decoding; remove `mtp` from capabilities.features",
            )
        )
    )

    nodes: PoolNodes
    """Which nodes belong to the pool."""
    devices: Devices
    """What computes."""
    engine: PoolEngine = PoolEngine()
    """The program that serves models."""
    capabilities: PoolCapabilities = PoolCapabilities()
    """What the engine can do here."""
    scheduling: PoolScheduling = PoolScheduling()
    """How groups of pods are placed."""
    topology: PoolTopology = PoolTopology()
    """Where a group of several pods may spread."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Who may use the pool."""
    cost: PoolCost | None = None
    """For reports. Absent: unknown."""
    pod_template: PodTemplate = Field(default_factory=dict)
    """Merged over the pods of every group here; the engine's container is called `engine`."""


class DeviceCounts(Schema):
    """Devices of all the pool's nodes."""

    total: Natural = 0
    """What healthy nodes would have."""
    allocatable: Natural = 0
    """What the nodes offer now."""
    used: Natural = 0
    """What bound pods hold, ours or not."""


class AcceleratorPoolStatus(Schema):
    """What the operator found."""

    observed_generation: Natural = 0
    """The generation of the spec it speaks of."""
    nodes: Natural = 0
    """Nodes that belong to the pool."""
    ready_nodes: Natural = 0
    """Of these: ready and schedulable."""
    devices: DeviceCounts = DeviceCounts()
    """Devices of all these nodes."""
    groups: Natural = 0
    """Replicas placed here."""
    waiting_groups: Natural = 0
    """Replicas that wait for devices here."""
    conditions: Conditions = ()
    """`Available`, `PoolOverlap`, `Degraded`."""
