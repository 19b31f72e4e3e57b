"""Binds the contract's metrics to a Prometheus registry; `main` makes one, `health` serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from hanmaru_contracts import metrics
from hanmaru_contracts.metrics import Metric
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class Meters:
    """What one operator process counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._reconciles = self._counter(metrics.OPERATOR_RECONCILES)
        self._reconcile_seconds = self._histogram(metrics.OPERATOR_RECONCILE_SECONDS)
        self._queue_seconds = self._histogram(metrics.OPERATOR_QUEUE_SECONDS)
        self._queue_depth = self._gauge(metrics.OPERATOR_QUEUE_DEPTH)
        self._leader = self._gauge(metrics.OPERATOR_LEADER)
        self._requests = self._counter(metrics.OPERATOR_API_REQUESTS)
        self._store_up = self._gauge(metrics.OPERATOR_STORE_UP)

    def reconciled(self, kind: str, result: str, seconds: float, waited_s: float) -> None:
        """One ended: `ok`, `failed` or `cancelled`."""
        self._reconciles.labels(kind, result).inc()
        self._reconcile_seconds.labels(kind).observe(seconds)
        self._queue_seconds.labels(kind).observe(waited_s)

    def requested(self, verb: str, code: int) -> None:
        """One request to the API server ended; `code` 0: without an answer."""
        self._requests.labels(verb, str(code)).inc()

    def watch(
        self, *, leads: Callable[[], bool], depth: Callable[[], int], objects: Callable[[], Mapping[str, int]]
    ) -> None:
        """Read these at each scrape."""
        self._leader.set_function(lambda: float(leads()))
        self._queue_depth.set_function(lambda: float(depth()))
        self._registry.register(_Objects(objects))

    def store_is(self, is_up: bool) -> None:
        """Redis answers, or does not."""
        self._store_up.set(float(is_up))

    def render(self) -> bytes:
        """For Prometheus, in its text format."""
        return generate_latest(self._registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self._registry)


class _Objects(Collector):
    """A gauge whose labels are what the store holds when it is asked."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        metric = metrics.OPERATOR_OBJECTS
        family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for kind, count in self._read().items():
            family.add_metric([kind], count)
        return [family]
