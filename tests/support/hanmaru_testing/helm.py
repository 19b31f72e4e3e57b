"""The real helm, for tests of the charts: what a chart renders as objects, and releases on a real API server.

Values are given as Python objects, the way `--values` files would say them. Every call is bounded.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hanmaru_cluster.build import find_helm, kubernetes_version
from hanmaru_contracts.crd.kinds import API_VERSION

from hanmaru_testing.go_programs import ROOT

CHART = ROOT / "charts/hanmaru"
CRDS_CHART = ROOT / "charts/hanmaru-crds"
EXAMPLES = CHART / "examples"
DEADLINE_S = 120.0
GATEWAY_API = "gateway.networking.k8s.io/v1"
SERVICE_MONITORS = "monitoring.coreos.com/v1"
RAY_SERVICES = "ray.io/v1"

Manifest = dict[str, Any]
Values = Mapping[str, Any]


class HelmError(Exception):
    """Helm refused; its words."""


class _EachKeyOnce(yaml.SafeLoader):
    """Of two entries with one key YAML's readers take one or the other; a template that writes both is wrong."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _objects(text: str) -> list[Manifest]:
    """Raises yaml.YAMLError where a key stands in one mapping twice."""
    return [manifest for manifest in yaml.load_all(text, _EachKeyOnce) if manifest]


@functools.cache
def _helm() -> Path:
    return find_helm()


def run_helm(*arguments: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
    """What helm prints. Raises HelmError with its words when it fails."""
    # Without a cluster of its own it must not find the developer's.
    environ = {**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)}
    done = subprocess.run(
        [str(_helm()), *arguments],
        input=stdin,
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise HelmError(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def render(
    values: Values | None = None,
    *,
    files: Sequence[Path] = (),
    chart: Path | None = None,
    release: str = "hanmaru",
    namespace: str = "hanmaru",
    api_versions: Sequence[str] = (API_VERSION, GATEWAY_API, SERVICE_MONITORS, RAY_SERVICES),
) -> list[Manifest]:
    """The chart's objects with these values over these files, without a cluster; those of `helm test` too."""
    served = [argument for version in api_versions for argument in ("--api-versions", version)]
    given = [argument for file in files for argument in ("--values", str(file))]
    text = run_helm(
        *("template", release, str(chart or CHART), "--namespace", namespace, "--kube-version", kubernetes_version()),
        *served,
        *given,
        *("--values", "-"),
        stdin=json.dumps(values or {}),
    )
    return _objects(text)


class Releases:
    """Releases on one cluster, as its administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def run(self, *arguments: str, values: Values | None = None) -> str:
        """Any helm command; `values` are given over its files. Raises HelmError."""
        given = ("--values", "-") if values is not None else ()
        return run_helm(*arguments, *given, stdin=json.dumps(values), kubeconfig=self._kubeconfig)

    def manifests(self, release: str, namespace: str) -> list[Manifest]:
        """What a release holds now, as helm sent it."""
        text = self.run("get", "manifest", release, "--namespace", namespace)
        return _objects(text)
