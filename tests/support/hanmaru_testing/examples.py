"""The examples of `operator/examples/kinds` as objects, and where the API server has each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hanmaru_contracts.crd.kinds import API_VERSION, KINDS, Kind

FOLDER = Path(__file__).parents[3] / "operator/examples/kinds"


def example(name: str) -> dict[str, Any]:
    """`pool-full`, `tenant-small`, …; a new object each time."""
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def kind_of(manifest: dict[str, Any]) -> Kind:
    """The kind of an object of ours."""
    return next(kind for kind in KINDS if kind.name == manifest["kind"])


def collection(kind: Kind, namespace: str) -> str:
    """URL path of a kind's objects; `namespace` counts for namespaced kinds."""
    scope = f"/namespaces/{namespace}" if kind.is_namespaced else ""
    return f"/apis/{API_VERSION}{scope}/{kind.plural}"
