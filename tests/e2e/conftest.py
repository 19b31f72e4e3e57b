"""One cluster and one release for all end-to-end tests, the order they run in, and what is said and kept of a run.

`make e2e` runs everything here; `make test` only what has no marker `e2e`: the slice, and what needs no cluster.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_contracts import keys
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Kube
from hanmaru_e2e.progress import Progress, keep_evidence
from hanmaru_e2e.release import Release
from hanmaru_e2e.target import SYSTEM_NODE, Target, open_target
from hanmaru_e2e.world import CLIENTS, MODELS, Clients, Key, World

ENV_EVIDENCE = "HANMARU_E2E_EVIDENCE"
"""Folder for logs and events of a failed run; default: a new temporary one."""
ORDER = (
    "test_install",
    "test_tenants",
    "test_group",
    "test_trust",
    "test_replicas",
    "test_control",
    "test_upgrade",
    "test_maintenance",
    "test_placing",
    "test_uninstall",
)
"""Of the modules with the marker `e2e`. One release lives through all of them, with a ready replica or more."""
_progress = Progress()
_kube: list[Kube] = []
_told: set[str] = set()
"""Tests of a cluster, by their ids."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    place = {name: number for number, name in enumerate(ORDER)}
    items.sort(key=lambda item: place.get(item.path.stem, -1) if item.path.parent == here else -1)


@pytest.fixture(scope="session")
def progress() -> Progress:
    return _progress


@pytest.fixture(scope="session")
def target(progress: Progress) -> Iterator[Target]:
    """The cluster."""
    with open_target(progress) as opened:
        _kube.append(opened.kube)
        yield opened
        _kube.clear()


@pytest.fixture(scope="session")
def world(target: Target) -> World:
    """Makes objects on it."""
    made = World(target)
    made.namespaces(names.NAMESPACE, MODELS, CLIENTS)
    return made


@pytest.fixture(scope="session")
def demo(world: World) -> Key:
    """The example's tenant: its key is made before the release, as its instructions say."""
    key = Key(names.TENANT, keys.new_api_key())
    world.claims(names.NAMESPACE)
    secret = {"name": names.KEY_SECRET, "namespace": names.NAMESPACE}
    world.kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "stringData": {"key": key.text}})
    return key


@pytest.fixture(scope="session")
def release(target: Target, demo: Key, progress: Progress) -> Release:
    """The charts, installed with the example's values."""
    made = Release(target)
    with progress.step("helm install of both charts"):
        made.install()
    return made


@pytest.fixture(scope="session")
def clients(world: World, release: Release, target: Target) -> Clients:
    """A pod in a namespace of its own that asks."""
    made = Clients(world, release, node=SYSTEM_NODE if target.own else None)
    made.start()
    return made


@pytest.fixture(scope="session")
def model(world: World, release: Release, clients: Clients, progress: Progress) -> str:
    """The example's deployment, when it serves."""
    with progress.step("the worker serves"):
        world.await_serving(names.MODEL, 1, namespace=names.NAMESPACE)
    return names.MODEL


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("e2e") or item.path.stem == "test_slice":
        _told.add(item.nodeid)
        _progress.say(item.name.removeprefix("test_").replace("_", " "))
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid not in _told:
        return
    name = report.nodeid.rpartition("/")[2]
    known = {each: number for number, (each, _, _) in enumerate(_progress.outcomes)}
    before = _progress.outcomes[known[name]] if name in known else (name, "passed", 0.0)
    outcome = before[1] if report.passed else report.outcome
    entry = (name, outcome, before[2] + report.duration)
    if name in known:
        _progress.outcomes[known[name]] = entry
    else:
        _progress.outcomes.append(entry)
    if report.failed and _kube:
        folder = _evidence() / name.replace("::", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.txt").write_text(report.longreprtext)
        keep_evidence(_kube[0], folder, {names.NAMESPACE, MODELS, CLIENTS})
        _progress.say(f"  FAILED; logs, events and descriptions are in {folder}")


def pytest_unconfigure() -> None:
    # After everything that pytest says: the last line is for programs.
    if _progress.outcomes:
        print(_progress.table(), _progress.json_line(), sep="\n")


def _evidence() -> Path:
    if ENV_EVIDENCE not in os.environ:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        os.environ[ENV_EVIDENCE] = tempfile.mkdtemp(prefix=f"hanmaru-e2e-{stamp}-")
    return Path(os.environ[ENV_EVIDENCE])
