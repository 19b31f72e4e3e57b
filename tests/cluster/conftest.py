"""The real cluster of the tests in this folder, and an image for its pods. As root a missing part is a failure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hanmaru_cluster import machine, static_image
from hanmaru_cluster.build import PROGRAMS
from hanmaru_cluster.real import RealCluster
from hanmaru_cluster.roles import NodeRole
from hanmaru_testing.go_programs import GoProgram, built

PROBE = "localhost/hanmaru-test/probe:1"


@pytest.fixture(scope="session")
def real_machine() -> None:
    """This machine and user can have a real cluster; else the test is skipped, and says why."""
    if reason := machine.cannot():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(real_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Two nodes for a whole run; node-a has devices, a label and a taint that keeps others away."""
    devices = NodeRole(
        "node-a",
        resources={"nvidia.com/gpu": "8"},
        labels={"node-restriction.kubernetes.io/model": "a100"},
        taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
    )
    with RealCluster([devices, NodeRole("node-b")]) as started:
        program = built(GoProgram("probe", PROGRAMS / "probe", "."))
        archive = static_image.write_archive(program, PROBE, tmp_path_factory.mktemp("images") / "probe.tar")
        started.load_image(archive)
        yield started


@pytest.fixture
def space(cluster: RealCluster) -> Iterator[str]:
    """A namespace of this test alone, in which Pod Security "restricted" is enforced."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.plane.create_namespace(name, labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def run(cluster: RealCluster, space: str) -> Callable[..., str]:
    """Kubectl in the test's namespace; the words are split at spaces."""

    def in_namespace(words: str, stdin: str | None = None) -> str:
        return cluster.kubectl("-n", space, *words.split(), stdin=stdin)

    return in_namespace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of this machine with one file that anybody may read."""
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("of the machine\n")
    return tmp_path
