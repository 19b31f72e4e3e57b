"""Every metric of every program: name, unit, labels and meaning, written once.

The programs bind these to their Prometheus client; the reference page and dashboards are made from the same table.
Units stand in the names (`_seconds`, `_tokens`, `_ratio`); counters end in `_total`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""From an answer of a tiny model to a long generation of the real one."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, whoever exports it."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


GATEWAY_REQUESTS = Metric(
    "hanmaru_gateway_requests_total",
    "counter",
    "Requests that ended, by outcome: `ok`, `cancelled` (the client left), or an error code.",
    ("model", "outcome"),
)
GATEWAY_REQUEST_SECONDS = Metric(
    "hanmaru_gateway_request_seconds",
    "histogram",
    "From a request's arrival to the end of its answer.",
    ("model",),
    REQUEST_BUCKETS_S,
)
GATEWAY_FIRST_TOKEN_SECONDS = Metric(
    "hanmaru_gateway_first_token_seconds",
    "histogram",
    "From a streaming request's arrival to the first event of its answer.",
    ("model",),
    REQUEST_BUCKETS_S,
)
GATEWAY_TOKENS = Metric(
    "hanmaru_gateway_tokens_total",
    "counter",
    "Tokens charged, by direction: `input` or `output`.",
    ("tenant", "model", "direction"),
)
GATEWAY_INFLIGHT_REQUESTS = Metric(
    "hanmaru_gateway_inflight_requests", "gauge", "Requests that were dispatched and have not ended."
)
GATEWAY_WORKERS = Metric(
    "hanmaru_gateway_workers", "gauge", "Live workers that take requests, as this gateway sees them.", ("model",)
)
GATEWAY_REGISTRATIONS_IGNORED = Metric(
    "hanmaru_gateway_registrations_ignored_total",
    "counter",
    "Registrations that were forged, damaged or expired, counted when they appear or change.",
)
GATEWAY_WORKER_FAILURES = Metric(
    "hanmaru_gateway_worker_failures_total",
    "counter",
    "Exchanges that a worker broke: `unreachable`, `broken`, `stalled`, `status`, `gone`.",
    ("model", "reason"),
)
GATEWAY_SETTLEMENTS_PENDING = Metric(
    "hanmaru_gateway_settlements_pending", "gauge", "Ended requests whose actual use is not yet written to Redis."
)
GATEWAY_SETTLEMENTS_LOST = Metric(
    "hanmaru_gateway_settlements_lost_total",
    "counter",
    "Ended requests whose actual use could not be written before it was worthless; their worst case stays charged.",
)
GATEWAY_STORE_UP = Metric("hanmaru_gateway_store_up", "gauge", "1 while Redis answers, else 0.")

WORKER_REGISTERED = Metric("hanmaru_worker_registered", "gauge", "1 while the worker holds its lease, else 0.")
WORKER_RUNNING_REQUESTS = Metric("hanmaru_worker_running_requests", "gauge", "Requests in the engine's running batch.")
WORKER_QUEUED_REQUESTS = Metric("hanmaru_worker_queued_requests", "gauge", "Requests that wait for the engine.")
WORKER_KV_LOAD_RATIO = Metric("hanmaru_worker_kv_load_ratio", "gauge", "Fullest of the engine's KV pools, 0-1.")
WORKER_RENEWALS = Metric(
    "hanmaru_worker_renewals_total", "counter", "Renewals of the lease, by outcome: `ok` or `failed`.", ("outcome",)
)

ENGINE_EXPERT_BALANCE = Metric(
    "sglang:eplb_balancedness",
    "summary",
    "SGLang's own, with expert parallel: in each pass the mean load of the ranks' experts over the highest, 0-1.",
    ("forward_mode",),
)

TIER_LOOKUPS = Metric(
    "hanmaru_tier_lookups_total",
    "counter",
    "Prompts that a rank looked for in the shared cache: `hit` (all pages that were asked for), `partial` or `miss`.",
    ("outcome",),
)
TIER_PAGES = Metric(
    "hanmaru_tier_pages_total",
    "counter",
    "Pages of the shared cache by pool and outcome: read as `hit`, `miss` or `refused` (not sealed by a worker of this"
    " model), written as `stored`, `full` (a bound was reached) or `lost` (Redis did not take it in time).",
    ("pool", "outcome"),
)
TIER_BYTES = Metric(
    "hanmaru_tier_bytes_total",
    "counter",
    "Bytes of the shared cache's pages, `read` and believed, or `written`.",
    ("direction",),
)
TIER_FAILURES = Metric(
    "hanmaru_tier_failures_total",
    "counter",
    "Calls to the shared cache's Redis without an answer of use: `timeout`, `unreachable`, `answer` (one page's error)"
    " or `paused` (not made, because those before failed).",
    ("reason",),
)

RECONCILE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""From a look that changes nothing to a reconcile that runs into its own deadline."""

OPERATOR_RECONCILES = Metric(
    "hanmaru_operator_reconciles_total",
    "counter",
    "Reconciles that ended, by result: `ok`, `failed` (tried again later) or `cancelled`.",
    ("kind", "result"),
)
OPERATOR_RECONCILE_SECONDS = Metric(
    "hanmaru_operator_reconcile_seconds", "histogram", "Length of a reconcile.", ("kind",), RECONCILE_BUCKETS_S
)
OPERATOR_QUEUE_SECONDS = Metric(
    "hanmaru_operator_queue_seconds",
    "histogram",
    "From the moment an object could be reconciled to the beginning of that.",
    ("kind",),
    RECONCILE_BUCKETS_S,
)
OPERATOR_QUEUE_DEPTH = Metric("hanmaru_operator_queue_depth", "gauge", "Objects that wait for a worker.")
OPERATOR_LEADER = Metric("hanmaru_operator_leader", "gauge", "1 while this process holds the lease, else 0.")
OPERATOR_OBJECTS = Metric("hanmaru_operator_objects", "gauge", "Objects known from the API server.", ("kind",))
OPERATOR_API_REQUESTS = Metric(
    "hanmaru_operator_api_requests_total",
    "counter",
    "Requests to the API server, watches apart, by verb and HTTP status (0: no answer).",
    ("verb", "code"),
)
OPERATOR_STORE_UP = Metric("hanmaru_operator_store_up", "gauge", "1 while Redis answers, else 0.")
