"""What routing knows of workers at one moment, as plain values. Made by `registry`, ranked by `policies`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.directory import Routes
from hanmaru_contracts.wire.worker import WorkerRecord


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One live worker that takes requests, with its load as far as this gateway can know it."""

    record: WorkerRecord
    load_requests: int
    """Requests it has: its own report, and what this gateway sent since."""

    @property
    def replica(self) -> ReplicaId:
        """Unique within its model."""
        return self.record.replica


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """All that routing needs to know of a request."""

    total_tokens: int
    """Prompt and the most output it may produce."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with at least one live worker. All its workers share one artifact, so they read the same token ids."""

    id: ModelId
    route: str
    artifact: str
    context_tokens: int
    """Of its most capable worker."""
    workers: tuple[ReplicaId, ...]
    """Those that take requests."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every served model, and every route that is owned or was ever seen, with the models behind it."""

    models: Mapping[ModelId, ServedModel] = field(default_factory=dict)
    routes: Mapping[str, tuple[ModelId, ...]] = field(default_factory=dict)
    """In order of model id; a route outlives its workers, so that it can be told from one nobody knows."""
    weights: Routes | None = None
    """The owners' models of each route, by weight: no other model is in `models` or `routes`. None: nobody owns
    routes, and workers are believed."""
