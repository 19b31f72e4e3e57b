"""One operator for all scenarios: the real process, the real control plane, real Redis; only hardware is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_testing.facts_pods import FactsPods
from hanmaru_testing.operator_process import PLATFORM_SECRET, OperatorProcess
from hanmaru_testing.operator_world import World, checkpoint_folder
from hanmaru_testing.planning import CONFIGS
from hanmaru_testing.redis_server import RedisServer
from hanmaru_testing.registrations import Registrations

SYSTEM = "hanmaru-system"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenarios last: from the first one on, an operator looks after every object that a test makes."""
    items.sort(key=lambda item: Path(__file__).parent in item.path.parents)


RETURN_AFTER_S = 2.0
"""How long a better pool must have had room; minutes in an installation."""


@pytest.fixture(scope="session")
def system_namespace(control_plane: ControlPlane, crds: None) -> str:
    """The operator's own namespace, which is also the only one where Tenants count."""
    control_plane.create_namespace(SYSTEM)
    return SYSTEM


@pytest.fixture(scope="session")
def facts_pods(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactsPods]:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = {name: checkpoint_folder(folder / name, config) for name, config in CONFIGS.items()}
    with FactsPods(control_plane.api, checkpoints) as answering:
        yield answering


@pytest.fixture(scope="session")
def scenario_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def operator(
    control_plane: ControlPlane,
    system_namespace: str,
    facts_pods: FactsPods,
    scenario_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """The operator, leading and ready."""
    folder: Path = tmp_path_factory.mktemp("operator")
    with OperatorProcess(
        folder,
        kubeconfig=control_plane.kubeconfig,
        redis_url=scenario_redis.url,
        namespace=system_namespace,
        returnAfterS=RETURN_AFTER_S,
        # Nobody restarts it when a machine that stands still for three seconds costs it the lease.
        lease={"leaseS": 20.0, "renewDeadlineS": 15.0, "retryS": 0.5},
    ) as running:
        running.await_event("resync.ended")
        yield running


@pytest.fixture
def own_operator(operator: OperatorProcess) -> Iterator[OperatorProcess]:
    """The shared operator for a test that kills it or gives it other settings; for the others it is as before."""
    yield operator
    operator.end()
    operator.configure()
    operator.start()
    operator.await_event("resync.ended")


@pytest.fixture
def world(control_plane: ControlPlane, operator: OperatorProcess, namespace: str, nodes: Nodes) -> Iterator[World]:
    """A corner of the cluster under the shared operator."""
    with World(control_plane.api, namespace, nodes) as made:
        yield made


@pytest.fixture
def registrations(world: World, scenario_redis: RedisServer) -> Iterator[Registrations]:
    """What this world's workers would say of themselves."""
    made = Registrations(scenario_redis, PLATFORM_SECRET, world.namespace)
    yield made
    made.close()
