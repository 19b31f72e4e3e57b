"""The CRDs as the chart ships them, for tests that put them on a real API server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from hanmaru_cluster.api import APPLY_PATCH, ApiClient, ApiError

TEMPLATES = Path(__file__).parents[3] / "charts/hanmaru-crds/templates"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_DEADLINE_S = 20.0


def shipped() -> list[dict[str, Any]]:
    """Every definition in the chart. Its one template action, which writes two braces, is undone."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(TEMPLATES.glob("*.yaml"))]
    return [yaml.safe_load(text.replace('{{ "{{" }}', "{{")) for text in texts]


def install(api: ApiClient) -> None:
    """Create or update them all, and wait until their objects are served."""
    for crd in shipped():
        path = f"{_CRDS}/{crd['metadata']['name']}?fieldManager=tests&force=true"
        api.request("PATCH", path, crd, content_type=APPLY_PATCH)
    for crd in shipped():
        version = crd["spec"]["versions"][0]["name"]
        await_served(api, f"/apis/{crd['spec']['group']}/{version}/{crd['spec']['names']['plural']}")


def await_served(api: ApiClient, path: str) -> None:
    """Wait until the objects of a kind can be listed."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while True:
        try:
            api.get(path)
        except ApiError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return
