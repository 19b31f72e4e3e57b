"""Every expression of the dashboards, read by Prometheus' own parser and compared with the metrics we export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts import metrics
from hanmaru_contracts.metrics import Metric
from hanmaru_testing.go_programs import ROOT
from hanmaru_testing.helm import render
from hanmaru_testing.promql import Parsed, parse

FOLDER = ROOT / "charts/hanmaru/dashboards"
FILES = sorted(FOLDER.glob("*.json"))
METRICS = {one.name: one for one in vars(metrics).values() if isinstance(one, Metric)}
OF_PODS = {"serving_hanmaru_dev_pool", "serving_hanmaru_dev_deployment"}
OF_TARGETS = {"namespace", "pod", *OF_PODS}
"""Labels that Prometheus puts on what it finds, or that the chart's ServiceMonitor has it take from pods."""

pytestmark = pytest.mark.timeout(1800)  # the first time builds the parser


def panels(file: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


def expressions(file: Path) -> list[str]:
    return [target["expr"] for panel in panels(file) for target in panel["targets"]]


def parsed(file: Path) -> list[Parsed]:
    """Grafana puts a time in the place of its variables."""
    return parse([re.sub(r"\$__(rate_interval|range)", "5m", expression) for expression in expressions(file)])


def metric_of(selected: str) -> Metric:
    """A histogram's series have suffixes."""
    return METRICS.get(selected) or METRICS[re.sub(r"_(bucket|sum|count)$", "", selected)]


def test_there_is_a_page_for_gateway_workers_and_operator() -> None:
    assert [file.stem for file in FILES] == ["gateway", "operator", "workers"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_prometheus_can_read_every_expression_and_each_metric_and_label_exists(file: Path) -> None:
    for expression, found in zip(expressions(file), parsed(file), strict=True):
        assert not found.error, f"{expression}: {found.error}"
        known = set(OF_TARGETS)
        for selector in found.selectors:
            metric = metric_of(selector.metric)
            known |= {*metric.labels, *(["le"] if metric.kind == "histogram" else [])}
            assert {*selector.labels} <= {*metric.labels, *OF_TARGETS}, expression
        assert found.selectors
        assert {*found.grouping} <= known, expression


def test_every_metric_of_ours_is_shown() -> None:
    shown = {metric_of(selector.metric).name for file in FILES for one in parsed(file) for selector in one.selectors}
    assert shown == METRICS.keys()


def test_a_counter_is_shown_as_a_rate_and_a_gauge_as_it_is() -> None:
    for file in FILES:
        for expression, found in zip(expressions(file), parsed(file), strict=True):
            kinds = {metric_of(selector.metric).kind for selector in found.selectors}
            assert ("rate(" in expression or "increase(" in expression) == (kinds != {"gauge"}), expression


def test_the_chart_has_prometheus_take_the_pods_labels_that_panels_group_by() -> None:
    monitors = [one for one in render({"monitoring": {"serviceMonitors": {"enabled": True}}})
                if one["kind"] == "ServiceMonitor"]  # fmt: skip
    taken = {label for monitor in monitors for label in monitor["spec"].get("podTargetLabels", ())}
    assert {re.sub(r"[^a-z_]", "_", label) for label in taken} >= OF_PODS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_do_not_lie_on_each_other(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(file.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
