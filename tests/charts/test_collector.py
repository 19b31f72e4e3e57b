"""The chart's configurations of the collector, judged by a real one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_testing.helm import render
from hanmaru_testing.otlp_collector import collector_path

VALIDATION_S = 60.0
OWN = {"receivers": {"otlp": {"protocols": {"grpc": {"endpoint": "0.0.0.0:4317"}}}}, "exporters": {"debug": {}},
       "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}}}}  # fmt: skip


def configuration(values: dict[str, Any]) -> str:
    (found,) = [
        m["data"]["config.yaml"]
        for m in render({"collector": values})
        if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "hanmaru-collector"
    ]
    return str(found)


@pytest.mark.parametrize(
    ("values", "exporter"),
    [
        ({}, {"debug": {"verbosity": "basic"}}),
        (
            {"export": {"endpoint": "http://tempo.example:4317"}},
            {"otlp": {"endpoint": "http://tempo.example:4317", "tls": {"insecure": True}}},
        ),
        ({"export": {"endpoint": "https://tempo.example:4317"}}, {"otlp": {"endpoint": "https://tempo.example:4317"}}),
        ({"config": OWN}, {"debug": {}}),
    ],
)
def test_a_real_collector_takes_it(values: dict[str, Any], exporter: dict[str, Any], tmp_path: Path) -> None:
    text = configuration(values)
    assert yaml.safe_load(text)["exporters"] == exporter
    file = tmp_path / "config.yaml"
    file.write_text(text)
    said = subprocess.run(
        [collector_path(), "validate", "--config", f"file:{file}"],
        capture_output=True,
        text=True,
        timeout=VALIDATION_S,
        check=False,
    )
    assert said.returncode == 0, said.stderr


def test_it_listens_where_workers_send() -> None:
    receivers = yaml.safe_load(configuration({}))["receivers"]
    assert receivers == {"otlp": {"protocols": {"grpc": {"endpoint": "0.0.0.0:4317"}}}}
