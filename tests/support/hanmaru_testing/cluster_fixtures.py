"""Fixtures of the real control plane, for every test that needs one; `tests/conftest.py` names this plugin.

A control plane that cannot be built or started fails the tests that ask for it: they are never skipped.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Protocol

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes

from hanmaru_testing.crds import install


class Kubectl(Protocol):
    """Runs the real kubectl as the administrator: its output, or RuntimeError with what it complained of."""

    def __call__(self, *arguments: str, stdin: str | None = None) -> str: ...


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One for the whole test run, started when the first test asks."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> None:
    """Our kinds, as the chart ships them, are served."""
    install(control_plane.api)


@pytest.fixture
def kubectl(control_plane: ControlPlane) -> Kubectl:
    return control_plane.kubectl


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of this test alone, ready to take pods; its deletion is asked for, not awaited."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    control_plane.create_namespace(name)
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def nodes(control_plane: ControlPlane) -> Iterator[Nodes]:
    """Makes this test's nodes, which only its own selector selects; they go with the test."""
    with Nodes(control_plane.api) as made:
        yield made
