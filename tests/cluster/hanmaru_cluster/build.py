"""Which files a cluster runs: built from pinned Go modules, or found in KUBEBUILDER_ASSETS.

`control_plane`, `real` and `python -m hanmaru_cluster build` ask. The pins are in `tests/cluster/programs`, one Go
module for Kubernetes with its etcd and one for each other project, so that none moves another's dependencies. What only
real nodes and charts need is asked for apart: who has no use for it does not wait until it is built.
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
_CONTAINERD_TAGS = "no_btrfs,no_devmapper,no_zfs"
"""Kinds of snapshots that are not used, and of which two want a C compiler."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the files that make a control plane."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubectl: Path
    kwok: Path


@dataclass(frozen=True, slots=True)
class NodePrograms:
    """Paths of the files that make nodes, and a name server for their pods."""

    kubelet: Path
    kube_proxy: Path
    containerd: Path
    containerd_shim_runc_v2: Path
    ctr: Path
    coredns: Path
    pause: Path


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """Every program, built first where it must be (five minutes in all on two cores, then kept)."""
    assets = environ.get(ENV_ASSETS)
    found = {name: file for name in _FROM_ASSETS if assets and (file := Path(assets) / name).exists()}
    paths = {name: found.get(name) or built(program) for name, program in _go_programs().items()}
    return Programs(**{name.replace("-", "_"): path for name, path in paths.items()})


def find_node_programs() -> NodePrograms:
    """Every program of a real node, built first where it must be (four minutes in all on two cores, then kept)."""
    kubernetes, containerd = PROGRAMS / "kubernetes", PROGRAMS / "containerd"
    ldflags = _kubernetes_ldflags(kubernetes_version())
    programs = [
        *(GoProgram(name, kubernetes, f"k8s.io/kubernetes/cmd/{name}", ldflags) for name in ("kubelet", "kube-proxy")),
        *(
            GoProgram(name, containerd, f"github.com/containerd/containerd/v2/cmd/{name}", tags=_CONTAINERD_TAGS)
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        GoProgram("coredns", PROGRAMS / "coredns", "github.com/coredns/coredns"),
        GoProgram("pause", PROGRAMS / "pause", "."),
    ]
    return NodePrograms(**{program.name.replace("-", "_"): built(program) for program in programs})


def find_helm() -> Path:
    """The helm that installs the charts, built first where it must be (two minutes)."""
    return built(GoProgram("helm", PROGRAMS / "helm", "helm.sh/helm/v4/cmd/helm"))


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
