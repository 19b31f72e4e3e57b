"""Which files the control plane runs: built from pinned Go modules, or found in KUBEBUILDER_ASSETS.

`control_plane` and `python -m hanmaru_cluster build` ask. The pins are in `tests/cluster/programs`, one Go module for
Kubernetes with its etcd and one for kwok, so that neither moves the other's dependencies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hanmaru_testing.go_programs import GoProgram, built

PROGRAMS = Path(__file__).parents[1] / "programs"
ENV_ASSETS = "KUBEBUILDER_ASSETS"
"""A folder of ready-made programs, by the name that envtest made usual."""
_FROM_ASSETS = ("etcd", "kube-apiserver", "kubectl")
"""What such a folder holds; the other programs are always built."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the files that make a control plane."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubectl: Path
    kwok: Path


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Every program, built first where it must be (five minutes in all on two cores, then kept)."""
    assets = environ.get(ENV_ASSETS)
    found = {name: file for name in _FROM_ASSETS if assets and (file := Path(assets) / name).exists()}
    paths = {name: found.get(name) or built(program) for name, program in _go_programs().items()}
    return Programs(**{name.replace("-", "_"): path for name, path in paths.items()})


def kubernetes_version() -> str:
    """Of the Kubernetes that is built, as go.mod pins it: `v1.36.3`."""
    found = re.search(r"^\tk8s\.io/kubernetes (v\S+)", (PROGRAMS / "kubernetes/go.mod").read_text(), re.MULTILINE)
    assert found is not None, "programs/kubernetes/go.mod does not pin k8s.io/kubernetes"
    return found[1]


def _go_programs() -> dict[str, GoProgram]:
    kubernetes = PROGRAMS / "kubernetes"
    ldflags = _kubernetes_ldflags(kubernetes_version())
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    programs = [
        GoProgram("etcd", kubernetes, "go.etcd.io/etcd/server/v3"),
        *(GoProgram(name, kubernetes, f"k8s.io/kubernetes/cmd/{name}", ldflags) for name in names),
        GoProgram("kwok", PROGRAMS / "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    ]
    return {program.name: program for program in programs}


def _kubernetes_ldflags(version: str) -> str:
    """Without these the server calls itself v0.0.0, and clients that look at the version misbehave."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in values.items())]
    )
