"""What the charts' tests share: the examples, and a release's way to the real API server."""

from __future__ import annotations

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.foreign_kinds import install_foreign_kinds
from hanmaru_testing.helm import Releases


@pytest.fixture(scope="session")
def foreign_kinds(control_plane: ControlPlane) -> None:
    """Routes and ServiceMonitors are served."""
    install_foreign_kinds(control_plane.api)


@pytest.fixture
def releases(control_plane: ControlPlane, crds: None) -> Releases:
    """On a cluster that has our kinds."""
    return Releases(control_plane.kubeconfig)
