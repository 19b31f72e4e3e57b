"""Binds the contract's metrics to a Prometheus registry and renders them.

One `Meters` a process, made by `app`. Label children are kept, because looking one up costs more than counting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hanmaru_contracts import metrics
from hanmaru_contracts.metrics import Metric
from hanmaru_contracts.names import ModelId, TenantId
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Meters:
    """What one gateway process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(metrics.GATEWAY_REQUESTS)
        self._request_seconds = self._histogram(metrics.GATEWAY_REQUEST_SECONDS)
        self._first_token_seconds = self._histogram(metrics.GATEWAY_FIRST_TOKEN_SECONDS)
        self._tokens = self._counter(metrics.GATEWAY_TOKENS)
        self._inflight = self._gauge(metrics.GATEWAY_INFLIGHT_REQUESTS)
        self._workers = self._gauge(metrics.GATEWAY_WORKERS)
        self._ignored = self._counter(metrics.GATEWAY_REGISTRATIONS_IGNORED)
        self._failures = self._counter(metrics.GATEWAY_WORKER_FAILURES)
        self._settlements = self._gauge(metrics.GATEWAY_SETTLEMENTS_PENDING)
        self._settlements_lost = self._counter(metrics.GATEWAY_SETTLEMENTS_LOST)
        self._store_up = self._gauge(metrics.GATEWAY_STORE_UP)
        self._children: dict[tuple[str, ...], tuple[Counter, Histogram]] = {}
        self._token_children: dict[tuple[str, str], tuple[Counter, Counter]] = {}

    def request_ended(self, model: str, outcome: str, seconds: float) -> None:
        """`model` is "" when the request never named one that its caller may use."""
        child = self._children.get((model, outcome))
        if child is None:
            child = (self._requests.labels(model, outcome), self._request_seconds.labels(model))
            self._children[(model, outcome)] = child
        child[0].inc()
        child[1].observe(seconds)

    def first_token(self, model: ModelId, seconds: float) -> None:
        """The first event of a streamed answer has come."""
        self._first_token_seconds.labels(model).observe(seconds)

    def charged(self, tenant: TenantId, model: ModelId, *, prompt_tokens: int, output_tokens: int) -> None:
        """What a request really used."""
        child = self._token_children.get((tenant, model))
        if child is None:
            child = (self._tokens.labels(tenant, model, "input"), self._tokens.labels(tenant, model, "output"))
            self._token_children[(tenant, model)] = child
        child[0].inc(prompt_tokens)
        child[1].inc(output_tokens)

    def watch_inflight(self, read: Callable[[], int]) -> None:
        """Read the number of dispatched requests at each scrape."""
        self._inflight.set_function(read)

    def watch_settlements(self, read: Callable[[], int]) -> None:
        """Read the number of unwritten settlements at each scrape."""
        self._settlements.set_function(read)

    def workers(self, model: ModelId, count: int) -> None:
        """How many workers of the model take requests."""
        self._workers.labels(model).set(count)

    def registration_ignored(self) -> None:
        """A record was not believed."""
        self._ignored.inc()

    def worker_failed(self, model: ModelId, reason: str) -> None:
        """A worker broke an exchange."""
        self._failures.labels(model, reason).inc()

    def settlement_lost(self) -> None:
        """An ended request stays charged at its worst case."""
        self._settlements_lost.inc()

    def store_up(self, up: bool) -> None:
        """Whether Redis answered last time."""
        self._store_up.set(1 if up else 0)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self.registry)


class MetricsApp:
    """The metrics as an ASGI application, for a listener of their own; never on the tenants' port."""

    def __init__(self, meters: Meters) -> None:
        self._registry = meters.registry

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[object]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """All metrics at `/metrics`, nothing anywhere else."""
        if scope["type"] != "http":
            return
        found = scope["path"] == "/metrics"
        body = generate_latest(self._registry) if found else b""
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
