"""`ModelDeployment`: one model, the name callers know it by, the pools it may run on, and how many replicas."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from hanmaru_contracts.crd.schema import (
    SELECTOR_GOES_WITH_FROM,
    Conditions,
    LabelSelector,
    Name,
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

RelativePath = Annotated[str, StringConstraints(pattern=r"^[^/].*$|^$", max_length=512)]
_INSIDE = Rule("!self.contains('..')", "the path must stay inside the volume: remove `..`")


class SourceType(StrEnum):
    """Where a checkpoint comes from."""

    HUGGING_FACE = "HuggingFace"
    PERSISTENT_VOLUME_CLAIM = "PersistentVolumeClaim"
    IMAGE = "Image"


class SecretKeyRef(Schema):
    """One key of a Secret in the object's own namespace."""

    name: Name
    """The Secret."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
    """The key in it."""


class HuggingFaceSource(Schema):
    """A repository of a model hub; each pod downloads it."""

    repo: Annotated[str, StringConstraints(pattern=r"^[-._A-Za-z0-9]+/[-._A-Za-z0-9]+$", max_length=200)]
    """`owner/name`."""
    revision: Annotated[str, StringConstraints(pattern=r"^[-._/A-Za-z0-9]+$", max_length=200)] = "main"
    """Branch, tag or commit. The commit found first is kept, and shown in `status.resolved.revision`."""
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=512)] = "https://huggingface.co"
    """A mirror of the hub."""
    token_secret_ref: SecretKeyRef | None = None
    """A token for repositories that ask for one."""


class PersistentVolumeClaimSource(Schema):
    """A claim in the deployment's namespace that already holds the checkpoint."""

    claim_name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
    """The claim; mounted read-only."""
    path: Annotated[RelativePath, Field(json_schema_extra=rules(_INSIDE))] = ""
    """Folder of the checkpoint in the volume. Empty: its root."""


class PullSecret(Schema):
    """A Secret of the deployment's namespace."""

    name: Name
    """The Secret."""


class ImageSource(Schema):
    """An OCI image that holds the checkpoint, mounted as an image volume (Kubernetes 1.35 and later)."""

    reference: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """The image; pin it by digest in production."""
    pull_secrets: Annotated[tuple[PullSecret, ...], Field(max_length=8, json_schema_extra=list_map("name"))] = ()
    """For registries that ask for a login."""
    path: Annotated[RelativePath, Field(json_schema_extra=rules(_INSIDE))] = ""
    """Folder of the checkpoint in the image. Empty: its root."""


class Source(Schema):
    """Where the checkpoint comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            one_block(
                {
                    "HuggingFace": "huggingFace",
                    "PersistentVolumeClaim": "persistentVolumeClaim",
                    "Image": "image",
                }
            )
        )
    )

    type: SourceType
    """`HuggingFace`, `PersistentVolumeClaim` or `Image`, each with the block of its name."""
    hugging_face: HuggingFaceSource | None = None
    """For type `HuggingFace`."""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """For type `PersistentVolumeClaim`."""
    image: ImageSource | None = None
    """For type `Image`."""


class LicenceUse(StrEnum):
    """Who is served."""

    INTERNAL = "Internal"
    THIRD_PARTY = "ThirdParty"


class Licence(Schema):
    """The acceptance that the model's licence asks for."""

    accepted: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Name of the licence you accept, such as `K-EXAONE AI Model License`."""
    use: LicenceUse = LicenceUse.INTERNAL
    """`Internal`, or `ThirdParty`: K-EXAONE's licence (§2.2) asks for an agreement with LG before others
    are served."""


class Route(Schema):
    """The name callers know the model by."""

    name: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$", max_length=128),
        Field(json_schema_extra=immutable("route.name")),
    ]
    """What callers put in `model`; unique in the cluster. The first namespace keeps it."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """Share of the requests, where deployments of one namespace share the name."""


class AccessFrom(StrEnum):
    """Whose tenants may be granted the model."""

    SAME = "Same"
    SELECTOR = "Selector"
    ALL = "All"


class Access(Schema):
    """Namespaces whose Tenants may name this model."""

    model_config = ConfigDict(json_schema_extra=rules(SELECTOR_GOES_WITH_FROM))

    from_: Annotated[AccessFrom, Field(alias="from")] = AccessFrom.SAME
    """`Same`: Tenants of the deployment's own namespace; `Selector`; `All`."""
    selector: LabelSelector | None = None
    """For `Selector`: labels of the Tenants' namespaces."""


_Degree = Annotated[int, Field(gt=0, le=1024)]


class ServingParallelism(Schema):
    """Sizes of the engine's process groups. What is absent is planned."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.tensor) || !has(self.expert) || self.tensor % self.expert == 0",
                "expert must divide tensor: expert parallel divides the tensor group",
            )
        )
    )

    tensor: _Degree | None = None
    """Devices over which each layer is split. Absent: planned."""
    expert: _Degree | None = None
    """Parts of the tensor group that hold different experts; divides `tensor`. Absent: planned."""
    pipeline: _Degree | None = None
    """Groups of layers. Absent: planned."""
    data: _Degree | None = None
    """Copies of the attention layers. Absent: planned."""


class KvCacheTier(Schema):
    """A tier of the prefix cache on Redis, which the deployment's replicas share. For short prefixes that many requests
    begin with, and for replicas that have just started.
    """

    max_gigabytes: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most of Redis's memory that the model's pages take, in 10^9 bytes."""
    life_seconds: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    """Life of a page that nobody reads from there."""
    max_prefix_tokens: Annotated[int, Field(ge=1, le=131_072)] = 16_384
    """Longer prefixes are not stored."""
    host_gigabytes: Annotated[int, Field(ge=1, le=1024)] = 8
    """Memory of the node, in 10^9 bytes for each rank, through which pages go to Redis and back."""


class ServingKvCache(Schema):
    """How much the engine keeps. What is absent is planned."""

    page_size: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Tokens a page. Absent: planned."""
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a device's memory for weights and cache. Absent: planned."""
    tier: KvCacheTier | None = None
    """A shared cache, where the installation has a Redis for it; `{}` takes the defaults. Absent: each replica's cache
    is its own."""


class SpeculativeType(StrEnum):
    """How tokens are drafted."""

    NONE = "None"
    MTP = "MTP"


class Mtp(Schema):
    """The model's own multi-token-prediction block drafts."""

    draft_tokens: Annotated[int, Field(ge=1, le=16)] = 3
    """Tokens drafted a step."""


class Speculative(Schema):
    """Speculative decoding."""

    model_config = ConfigDict(json_schema_extra=rules(one_block({"MTP": "mtp", "None": ""})))

    type: SpeculativeType
    """`None`, or `MTP` with its block."""
    mtp: Mtp | None = None
    """For type `MTP`; `{}` takes the defaults."""


class Serving(Schema):
    """How the engine serves the model. What is absent is planned for each pool."""

    parallelism: ServingParallelism = ServingParallelism()
    """Sizes of the engine's process groups."""
    context_tokens: Positive | None = None
    """Longest prompt and output together. Absent: what model and pool allow."""
    kv_cache: ServingKvCache = ServingKvCache()
    """How much the engine keeps."""
    speculative: Speculative | None = None
    """Absent: MTP where the model has it and the pool offers it."""
    extra_args: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    """Further flags of the engine, after the pool's."""
    pod_template: PodTemplate = Field(default_factory=dict)
    """Merged over the pool's pod template."""


class DeploymentPool(Schema):
    """One pool the deployment may use; the first in the list is the first choice."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas must not be above maxReplicas",
            )
        )
    )

    name: Name
    """The AcceleratorPool."""
    source: Source | None = None
    """A checkpoint of this pool's own, such as one in its engine's format. Absent: `spec.source`."""
    serving: Serving | None = None
    """Settings of this pool's own, instead of `spec.serving`."""
    min_replicas: Natural = 0
    """Replicas kept here whatever the other pools hold, as far as `replicas` reaches."""
    max_replicas: Natural | None = None
    """Most replicas here. Absent: no bound."""


class Rollout(Schema):
    """How replicas are replaced when the spec changes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(has(self.maxSurge) && has(self.maxUnavailable) && self.maxSurge == 0 && self.maxUnavailable == 0)",
                "maxSurge and maxUnavailable cannot both be 0: nothing could ever be replaced",
            )
        )
    )

    max_surge: Natural | None = None
    """Replicas above `replicas` while rolling out. 0 where the model fills the cluster. Absent beside
    `maxUnavailable`: 0, or 1 when that is 0. Both absent: one more where its devices are free, else one fewer."""
    max_unavailable: Natural | None = None
    """Ready replicas that may be missing while rolling out. Absent beside `maxSurge`: 0, or 1 when that is 0."""
    paused: bool = False
    """True: no replica is replaced; scaling and repairs go on."""
    progress_deadline_seconds: Positive = 3600
    """A rollout without progress for so long is `Progressing=False`."""


class Lifecycle(Schema):
    """Times and the switch of a deployment."""

    startup_timeout_seconds: Positive = 3600
    """How long a replica may take until it has made its first token."""
    drain_seconds: Annotated[int, Field(ge=0, le=86400)] = 120
    """How long running requests may take to finish when a replica ends."""
    stopped: bool = False
    """True: no replica runs; nothing else is forgotten."""


class ModelDeploymentSpec(Schema):
    """One model, the name callers know it by, the pools it may run on, and how many replicas."""

    source: Source
    """Where the checkpoint comes from."""
    licence: Licence
    """The acceptance that the model's licence asks for."""
    route: Route
    """The name callers know the model by."""
    access: Access = Access()
    """Whose tenants may be granted the model."""
    pools: Annotated[tuple[DeploymentPool, ...], Field(min_length=1, max_length=16, json_schema_extra=list_map("name"))]
    """Pools it may use, first choice first."""
    serving: Serving = Serving()
    """How the engine serves the model."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Replicas over all pools."""
    rollout: Rollout = Rollout()
    """How replicas are replaced."""
    lifecycle: Lifecycle = Lifecycle()
    """Times and the switch."""


class RevisionStatus(Schema):
    """Replicas of one revision."""

    hash: Text
    """The revision."""
    replicas: Natural = 0
    """How many there are."""
    ready: Natural = 0
    """How many serve."""
    weight: Natural = 0
    """Share of the route's requests, in the route's weights."""


class DeploymentPoolStatus(Schema):
    """Replicas in one pool."""

    name: Name
    """The pool."""
    replicas: Natural = 0
    """How many there are."""
    ready: Natural = 0
    """How many serve."""
    waiting: Natural = 0
    """How many wait for devices."""


class PlanStatus(Schema):
    """What was planned for one pool, in numbers that a person asks for first."""

    pool: Name
    """The pool."""
    fits: bool
    """Whether the model can run there."""
    nodes: Natural = 0
    """Pods, each on a node of its own unless they share one, of one replica."""
    devices: Natural = 0
    """Devices of one replica."""
    parallelism: Text = ""
    """Such as `tensor 8, expert 8`."""
    context_tokens: Natural = 0
    """Longest prompt and output together."""
    global_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that one replica's global layers hold."""
    sliding_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that its sliding layers hold."""
    weight_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of weights of one replica, all devices."""
    message: Text = ""
    """Why it does not fit, or what is special about the plan."""


class ResolvedStatus(Schema):
    """What names were found to mean."""

    revision: Text = ""
    """The commit of the checkpoint."""
    image: Text = ""
    """The engine's image of the newest revision."""


class ModelDeploymentStatus(Schema):
    """What the operator found and does."""

    observed_generation: Natural = 0
    """The generation of the spec it speaks of."""
    revision: Text = ""
    """The newest revision: a hash of what was written and the engine's image."""
    restarted_at: Text = ""
    """The annotation `serving.hanmaru.dev/restarted-at` that it speaks of: an annotation changes no generation."""
    revisions: Annotated[tuple[RevisionStatus, ...], Field(max_length=16)] = ()
    """Replicas by revision."""
    pools: Annotated[tuple[DeploymentPoolStatus, ...], Field(max_length=16)] = ()
    """Replicas by pool."""
    plan: Annotated[tuple[PlanStatus, ...], Field(max_length=16)] = ()
    """The plan for each pool."""
    resolved: ResolvedStatus = ResolvedStatus()
    """What names were found to mean."""
    replicas: Natural = 0
    """Replicas that exist, for the scale subresource."""
    ready_replicas: Natural = 0
    """Replicas that serve."""
    selector: Text = ""
    """Selects the first pod of each replica, because autoscalers divide by pods."""
    conditions: Conditions = ()
    """`Available`, `Progressing`, `Degraded`, `Unschedulable`, `LicenceNotAccepted`, `NameConflict`, `NotAllowed`, …"""
