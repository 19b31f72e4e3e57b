"""The tier's counters, on the engine's own Prometheus page: SGLang collects those of all its processes there."""

from __future__ import annotations

from hanmaru_contracts import metrics
from prometheus_client import REGISTRY, CollectorRegistry, Counter


class Meters:
    """One for a process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._pages = _counter(metrics.TIER_PAGES, registry)
        self._bytes = _counter(metrics.TIER_BYTES, registry)
        self._lookups = _counter(metrics.TIER_LOOKUPS, registry)
        self._failures = _counter(metrics.TIER_FAILURES, registry)

    def pages(self, pool: str, outcome: str, count: int) -> None:
        """Pages that were read or written, or were not."""
        if count:
            self._pages.labels(pool, outcome).inc(count)

    def moved(self, direction: str, size_bytes: int) -> None:
        """Bytes that were `read` and believed, or `written`."""
        if size_bytes:
            self._bytes.labels(direction).inc(size_bytes)

    def looked_up(self, outcome: str) -> None:
        """One prompt was looked for."""
        self._lookups.labels(outcome).inc()

    def failed(self, reason: str) -> None:
        """Redis did not answer, or not with an answer."""
        self._failures.labels(reason).inc()


def _counter(metric: metrics.Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name.removesuffix("_total"), metric.meaning, metric.labels, registry=registry)
