"""Writes Grafana's dashboards of `hanmaru_contracts/metrics.py` into the chart. Run by `make generate`.

A panel names its metrics by the objects of the contracts, so none can be shown that nobody exports. Colours, order and
sizes are Grafana's; what a number means is the metric's own sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmaru_contracts import metrics
from hanmaru_contracts.metrics import Metric

OUTPUT = Path(__file__).parents[1] / "charts/hanmaru/dashboards"
_RATE = "$__rate_interval"
_COLUMNS = 24
_HEIGHT = 8
_MODEL = 'model=~"$model"'
_TENANT = 'tenant=~"$tenant"'

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and what its series are called."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    shows: tuple[Metric, ...]
    """Their meanings are the panel's description."""
    queries: tuple[Query, ...]
    unit: str = "short"
    is_number: bool = False
    """One number instead of lines."""
    width: int = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """A menu above the panels."""

    name: str
    metric: Metric


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]]
    choices: tuple[Choice, ...] = field(default=())


def rate(metric: Metric, by: str, only: str = "") -> str:
    """A counter a second, summed."""
    return f"sum by ({by}) (rate({metric.name}{{{only}}}[{_RATE}]))"


def mean(metric: Metric, by: str) -> str:
    """A summary's mean over the last while."""
    sums, counts = (f"sum by ({by}) (rate({metric.name}_{part}[{_RATE}]))" for part in ("sum", "count"))
    return f"{sums} / {counts}"


def quantiles(
    metric: Metric, by: str = "", only: str = "", of: Sequence[float] = (0.5, 0.95, 0.99)
) -> tuple[Query, ...]:
    """A histogram's quantiles."""
    grouping = ", ".join(filter(None, ("le", by)))
    label = f" {{{{{by}}}}}" if by else ""
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by ({grouping}) (rate({metric.name}_bucket{{{only}}}[{_RATE}])))",
            f"p{share * 100:g}{label}",
        )
        for share in of
    )


def lines(title: str, metric: Metric, by: str, only: str = "", unit: str = "reqps") -> Panel:
    """A counter a second, a line for each label's value."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return Panel(title, (metric,), (Query(rate(metric, by, only), legend),), unit)


def number(title: str, metric: Metric, expression: str, unit: str = "short") -> Panel:
    """One number."""
    return Panel(title, (metric,), (Query(expression, ""),), unit, is_number=True, width=4)


def gauge(title: str, metric: Metric, expression: str, legend: str, unit: str = "short") -> Panel:
    """A gauge over time."""
    return Panel(title, (metric,), (Query(expression, legend),), unit)


_FAILED = f'{_MODEL}, outcome!~"ok|cancelled"'
_POD = "namespace, pod"
_POD_LEGEND = "{{namespace}}/{{pod}}"
_POOL = "serving_hanmaru_dev_pool"
_DEPLOYMENT = "namespace, serving_hanmaru_dev_deployment"
"""Labels of workers' pods, which the chart's ServiceMonitor puts on their metrics."""
_DEPLOYMENT_LEGEND = "{{namespace}}/{{serving_hanmaru_dev_deployment}}"

GATEWAY = Dashboard(
    "hanmaru-gateway",
    "Hanmaru: tenants and gateway",
    {
        "Requests": (
            lines("Requests by outcome", metrics.GATEWAY_REQUESTS, "outcome", _MODEL),
            lines("Requests by model", metrics.GATEWAY_REQUESTS, "model", _MODEL),
            Panel(
                "Share of failed requests",
                (metrics.GATEWAY_REQUESTS,),
                (
                    Query(
                        f"{rate(metrics.GATEWAY_REQUESTS, 'model', _FAILED)}"
                        f" / {rate(metrics.GATEWAY_REQUESTS, 'model', _MODEL)}",
                        "{{model}}",
                    ),
                ),
                "percentunit",
            ),
            Panel(
                "Time to the first event",
                (metrics.GATEWAY_FIRST_TOKEN_SECONDS,),
                quantiles(metrics.GATEWAY_FIRST_TOKEN_SECONDS, only=_MODEL),
                "s",
            ),
            Panel(
                "Length of requests",
                (metrics.GATEWAY_REQUEST_SECONDS,),
                quantiles(metrics.GATEWAY_REQUEST_SECONDS, only=_MODEL),
                "s",
            ),
            gauge(
                "Requests in flight",
                metrics.GATEWAY_INFLIGHT_REQUESTS,
                f"sum by ({_POD}) ({metrics.GATEWAY_INFLIGHT_REQUESTS.name})",
                _POD_LEGEND,
            ),
        ),
        "Tenants": (
            lines("Input tokens a second", metrics.GATEWAY_TOKENS, "tenant",
                  f'{_MODEL}, {_TENANT}, direction="input"', "short"),
            lines("Output tokens a second", metrics.GATEWAY_TOKENS, "tenant",
                  f'{_MODEL}, {_TENANT}, direction="output"', "short"),
            Panel(
                "Tokens charged, the ten tenants with most",
                (metrics.GATEWAY_TOKENS,),
                (
                    Query(
                        "topk(10, sum by (tenant, direction) "
                        f"(increase({metrics.GATEWAY_TOKENS.name}{{{_MODEL}, {_TENANT}}}[$__range])))",
                        "{{tenant}} {{direction}}",
                    ),
                ),
                is_number=True,
            ),
        ),
        "What the gateways lean on": (
            number("Redis answers all gateways", metrics.GATEWAY_STORE_UP, f"min({metrics.GATEWAY_STORE_UP.name})"),
            number("Settlements pending", metrics.GATEWAY_SETTLEMENTS_PENDING,
                   f"sum({metrics.GATEWAY_SETTLEMENTS_PENDING.name})"),
            gauge("Workers that gateways see", metrics.GATEWAY_WORKERS,
                  f"min by (model) ({metrics.GATEWAY_WORKERS.name}{{{_MODEL}}})", "{{model}}"),
            lines("Exchanges that workers broke", metrics.GATEWAY_WORKER_FAILURES, "model, reason", _MODEL, "short"),
            lines("Registrations ignored", metrics.GATEWAY_REGISTRATIONS_IGNORED, "pod", "", "short"),
            lines("Settlements lost", metrics.GATEWAY_SETTLEMENTS_LOST, "pod", "", "short"),
        ),
    },
    (Choice("model", metrics.GATEWAY_REQUESTS), Choice("tenant", metrics.GATEWAY_TOKENS)),
)  # fmt: skip

WORKERS = Dashboard(
    "hanmaru-workers",
    "Hanmaru: workers and engines",
    {
        "Now": (
            number("Workers registered", metrics.WORKER_REGISTERED, f"sum({metrics.WORKER_REGISTERED.name})"),
            number("Without a lease", metrics.WORKER_REGISTERED, f"count({metrics.WORKER_REGISTERED.name} == 0)"),
            number("Running requests", metrics.WORKER_RUNNING_REQUESTS, f"sum({metrics.WORKER_RUNNING_REQUESTS.name})"),
            number("Queued requests", metrics.WORKER_QUEUED_REQUESTS, f"sum({metrics.WORKER_QUEUED_REQUESTS.name})"),
            number("Fullest cache", metrics.WORKER_KV_LOAD_RATIO, f"max({metrics.WORKER_KV_LOAD_RATIO.name})",
                   "percentunit"),
        ),
        "Each deployment": (
            gauge("Workers registered", metrics.WORKER_REGISTERED,
                  f"sum by ({_DEPLOYMENT}) ({metrics.WORKER_REGISTERED.name})", _DEPLOYMENT_LEGEND),
            gauge("Requests, running and queued", metrics.WORKER_RUNNING_REQUESTS,
                  f"sum by ({_DEPLOYMENT}) ({metrics.WORKER_RUNNING_REQUESTS.name})"
                  f" + sum by ({_DEPLOYMENT}) ({metrics.WORKER_QUEUED_REQUESTS.name})", _DEPLOYMENT_LEGEND),
            gauge("Fullest of the caches' pools", metrics.WORKER_KV_LOAD_RATIO,
                  f"max by ({_DEPLOYMENT}) ({metrics.WORKER_KV_LOAD_RATIO.name})", _DEPLOYMENT_LEGEND, "percentunit"),
        ),
        "Each worker": (
            gauge("Running requests", metrics.WORKER_RUNNING_REQUESTS,
                  f"sum by ({_POD}) ({metrics.WORKER_RUNNING_REQUESTS.name})", _POD_LEGEND),
            gauge("Queued requests", metrics.WORKER_QUEUED_REQUESTS,
                  f"sum by ({_POD}) ({metrics.WORKER_QUEUED_REQUESTS.name})", _POD_LEGEND),
            gauge("Fullest of the cache's pools", metrics.WORKER_KV_LOAD_RATIO,
                  f"max by ({_POD}) ({metrics.WORKER_KV_LOAD_RATIO.name})", _POD_LEGEND, "percentunit"),
            gauge("Holds its lease", metrics.WORKER_REGISTERED,
                  f"max by ({_POD}) ({metrics.WORKER_REGISTERED.name})", _POD_LEGEND),
            lines("Renewals of the lease that failed", metrics.WORKER_RENEWALS, _POD, 'outcome="failed"', "short"),
            Panel("Evenness of expert-parallel ranks", (metrics.ENGINE_EXPERT_BALANCE,),
                  (Query(mean(metrics.ENGINE_EXPERT_BALANCE, _POD), _POD_LEGEND),), "percentunit"),
        ),
        "Shared caches": (
            lines("Pages", metrics.TIER_PAGES, "pool, outcome", unit="ops"),
            lines("Bytes", metrics.TIER_BYTES, "direction", unit="Bps"),
            lines("Prompts looked for", metrics.TIER_LOOKUPS, "outcome"),
            lines("Calls without an answer", metrics.TIER_FAILURES, "reason", unit="ops"),
        ),
    },
)  # fmt: skip

OPERATOR = Dashboard(
    "hanmaru-operator",
    "Hanmaru: operator and pools",
    {
        "Now": (
            number("Leaders (1 is right)", metrics.OPERATOR_LEADER, f"sum({metrics.OPERATOR_LEADER.name})"),
            number("Redis answers", metrics.OPERATOR_STORE_UP, f"min({metrics.OPERATOR_STORE_UP.name})"),
            number("Objects that wait", metrics.OPERATOR_QUEUE_DEPTH, f"max({metrics.OPERATOR_QUEUE_DEPTH.name})"),
            number("Pools", metrics.OPERATOR_OBJECTS,
                   f'max({metrics.OPERATOR_OBJECTS.name}{{kind="AcceleratorPool"}})'),
            number("Deployments", metrics.OPERATOR_OBJECTS,
                   f'max({metrics.OPERATOR_OBJECTS.name}{{kind="ModelDeployment"}})'),
            number("Tenants", metrics.OPERATOR_OBJECTS, f'max({metrics.OPERATOR_OBJECTS.name}{{kind="Tenant"}})'),
        ),
        "Pools": (
            gauge("Workers registered", metrics.WORKER_REGISTERED,
                  f"sum by ({_POOL}) ({metrics.WORKER_REGISTERED.name})", "{{serving_hanmaru_dev_pool}}"),
            gauge("Requests running", metrics.WORKER_RUNNING_REQUESTS,
                  f"sum by ({_POOL}) ({metrics.WORKER_RUNNING_REQUESTS.name})", "{{serving_hanmaru_dev_pool}}"),
            gauge("Requests queued", metrics.WORKER_QUEUED_REQUESTS,
                  f"sum by ({_POOL}) ({metrics.WORKER_QUEUED_REQUESTS.name})", "{{serving_hanmaru_dev_pool}}"),
        ),
        "Reconciling": (
            lines("Reconciles", metrics.OPERATOR_RECONCILES, "kind, result", "", "short"),
            lines("Reconciles that failed", metrics.OPERATOR_RECONCILES, "kind", 'result="failed"', "short"),
            Panel("Length of a reconcile, p95", (metrics.OPERATOR_RECONCILE_SECONDS,),
                  quantiles(metrics.OPERATOR_RECONCILE_SECONDS, "kind", of=(0.95,)), "s"),
            Panel("Wait before a reconcile, p95", (metrics.OPERATOR_QUEUE_SECONDS,),
                  quantiles(metrics.OPERATOR_QUEUE_SECONDS, "kind", of=(0.95,)), "s"),
            gauge("Objects that wait", metrics.OPERATOR_QUEUE_DEPTH,
                  f"max by (pod) ({metrics.OPERATOR_QUEUE_DEPTH.name})", "{{pod}}"),
            gauge("Objects known", metrics.OPERATOR_OBJECTS,
                  f"max by (kind) ({metrics.OPERATOR_OBJECTS.name})", "{{kind}}"),
        ),
        "The API server": (
            lines("Requests", metrics.OPERATOR_API_REQUESTS, "verb, code"),
            lines("Requests that were refused or unanswered", metrics.OPERATOR_API_REQUESTS, "verb, code",
                  'code!~"2.."'),
        ),
    },
)  # fmt: skip

DASHBOARDS = (GATEWAY, WORKERS, OPERATOR)


def render(dashboard: Dashboard) -> Json:
    """The page as Grafana imports it (schema 39, Grafana 10 and newer)."""
    return {
        "__comment": "Generated by tools/generate_dashboards.py from hanmaru_contracts/metrics.py; do not edit.",
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["hanmaru"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), *(_choice(choice) for choice in dashboard.choices)]},
        "panels": list(_panels(dashboard)),
    }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    """Rows of panels from left to right, each panel with a number."""
    top, count = 0, 0
    for title, panels in dashboard.rows.items():
        count += 1
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"id": count, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top, left = top + 1, 0
        for panel in panels:
            if left + panel.width > _COLUMNS:
                top, left = top + _HEIGHT, 0
            count += 1
            yield _panel(panel, count, {"h": _HEIGHT, "w": panel.width, "x": left, "y": top})
            left += panel.width
        top += _HEIGHT


def _panel(panel: Panel, number: int, place: Json) -> Json:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "description": "\n\n".join(f"`{metric.name}`: {metric.meaning}" for metric in panel.shows),
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": source,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(choice: Choice) -> Json:
    return {
        "name": choice.name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values({choice.metric.name}, {choice.name})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
    }


def main() -> None:
    """Write every dashboard."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        file = OUTPUT / f"{dashboard.uid.removeprefix('hanmaru-')}.json"
        text = json.dumps(render(dashboard), indent=2, ensure_ascii=False)
        # The first member, which names this generator, belongs on the first line.
        file.write_text(text.replace("{\n  ", "{", 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
