"""What the doctor saw of a cluster: lists of objects, each either seen or not to be seen, with the reason.

`fetch` makes it; every check takes it (or a list of it) and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hanmaru_cli.doctor.finding import Finding, Mark
from hanmaru_cli.doctor.objects import (
    Claim,
    Definition,
    Event,
    Kubernetes,
    Lease,
    NetworkPolicy,
    Node,
    Ours,
    Pod,
    Workload,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """Objects of one kind. A list that could not be had is empty and says why."""

    items: tuple[T, ...] = ()
    unseen: str = ""
    """Why we could not look; empty: we could, and `items` are all there are within `scope`."""
    is_served: bool = True
    """False: the API server does not know the kind at all."""

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def cannot_look(self, check: str, what: str) -> list[Finding]:
        """The line for a list that could not be had; nothing when it could."""
        if not self.unseen:
            return []
        to_do = "ask an administrator to look, or for the right to list them"
        return [Finding(Mark.UNSEEN, check, "", f"cannot look at {what}: {self.unseen}", to_do=to_do)]


@dataclass(frozen=True, slots=True)
class World:
    """One cluster, at one moment, as one user may see it."""

    server: str
    version: str
    """Of Kubernetes, such as `v1.36.3`; empty: it did not say."""
    server_time: float | None
    """Unix seconds when it answered; None: it did not say."""
    local_time: float
    """Ours at the same moment."""
    cli_version: str
    """Of this `hanmaru`."""
    definitions: Listed[Definition] = field(default_factory=Listed)
    nodes: Listed[Node] = field(default_factory=Listed)
    runtime_classes: Listed[Kubernetes] = field(default_factory=Listed)
    namespaces: Listed[Kubernetes] = field(default_factory=Listed)
    workloads: Listed[Workload] = field(default_factory=Listed)
    """Deployments and StatefulSets of releases of the chart."""
    groups: Listed[Workload] = field(default_factory=Listed)
    """StatefulSets of replicas."""
    daemons: Listed[Kubernetes] = field(default_factory=Listed)
    """DaemonSets of kube-system, and others that look like a network or a device plugin."""
    leases: Listed[Lease] = field(default_factory=Listed)
    """In the releases' namespaces."""
    pods: Listed[Pod] = field(default_factory=Listed)
    """Of releases, and of the operator."""
    claims: Listed[Claim] = field(default_factory=Listed)
    policies: Listed[NetworkPolicy] = field(default_factory=Listed)
    events: Listed[Event] = field(default_factory=Listed)
    """`FailedCreate`: why a controller could not make a pod."""
    pools: Listed[Ours] = field(default_factory=Listed)
    deployments: Listed[Ours] = field(default_factory=Listed)
    tenants: Listed[Ours] = field(default_factory=Listed)
    secrets: Listed[Kubernetes] = field(default_factory=Listed)
    """Names alone, in tenants' namespaces."""
    narrowed_to: str = ""
    """The one namespace that some lists are of, because not all may be looked at; empty: all."""

    @property
    def now(self) -> float:
        """The API server's clock where it is known: times in objects are by it."""
        return self.local_time if self.server_time is None else self.server_time
