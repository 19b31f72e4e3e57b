"""Which workers a request may go to, best first: pure functions of what is known. Called by `flow`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hanmaru_gateway.routing.snapshot import RequestFacts, WorkerSnapshot


class Policy(Protocol):
    """Ranks workers; leaves out those that cannot serve the request. Empty: nobody can."""

    def __call__(
        self, request: RequestFacts, workers: Sequence[WorkerSnapshot], random: Callable[[], float]
    ) -> list[WorkerSnapshot]:
        """`random` gives numbers in [0, 1) and decides among equals."""


def is_capable(request: RequestFacts, worker: WorkerSnapshot) -> bool:
    """Whether the worker can serve the request at all, however long it takes."""
    return not worker.record.draining and request.total_tokens <= worker.record.capabilities.context_tokens


def least_loaded(
    request: RequestFacts, workers: Sequence[WorkerSnapshot], random: Callable[[], float]
) -> list[WorkerSnapshot]:
    """Capable workers by the requests they have; equals in random order, so that gateways do not herd."""
    capable = [worker for worker in workers if is_capable(request, worker)]
    if len(capable) < 2:
        return capable
    return sorted(capable, key=lambda worker: (worker.load_requests, random()))
