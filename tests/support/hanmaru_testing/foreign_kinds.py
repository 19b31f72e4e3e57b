"""Kinds of other projects that the chart's objects have, as those projects' own modules define them.

The modules are pinned in `tests/cluster/programs/definitions`. No controller for them runs: tests ask the API server
alone whether it takes the objects.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from hanmaru_cluster.api import APPLY_PATCH, ApiClient
from hanmaru_cluster.build import PROGRAMS

from hanmaru_testing.crds import await_served
from hanmaru_testing.go_programs import module_folder

_PINS = PROGRAMS / "definitions"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def definition_files() -> list[Path]:
    """Gateways, routes and ServiceMonitors."""
    gateway_api = module_folder(_PINS, "sigs.k8s.io/gateway-api") / "config/crd/standard"
    prometheus = module_folder(_PINS, "github.com/prometheus-operator/prometheus-operator")
    routes = [
        gateway_api / f"gateway.networking.k8s.io_{kind}.yaml" for kind in ("gateways", "httproutes", "grpcroutes")
    ]
    return [*routes, prometheus / "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"]


def install_foreign_kinds(api: ApiClient) -> None:
    """Create or update them, and wait until their objects are served."""
    definitions = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in definition_files()]
    for crd in definitions:
        path = f"{_CRDS}/{crd['metadata']['name']}?fieldManager=tests&force=true"
        api.request("PATCH", path, crd, content_type=APPLY_PATCH)
    for crd in definitions:
        version = next(each["name"] for each in crd["spec"]["versions"] if each["served"])
        await_served(api, f"/apis/{crd['spec']['group']}/{version}/{crd['spec']['names']['plural']}")
