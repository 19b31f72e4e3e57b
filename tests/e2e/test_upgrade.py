"""`helm upgrade` and `helm rollback` under load: gateways and operator are replaced, workers are not."""

from __future__ import annotations

import pytest
from hanmaru_contracts.names import LABEL_COMPONENT
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import uids
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.release import Release
from hanmaru_e2e.world import Clients, Key, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
CHANGED = {
    "operator": {"settings": {"resyncIntervalS": 300}, "annotations": {"hanmaru.test/upgraded": "yes"}},
    "gateway": {"extraEnv": [{"name": "HANMARU_TEST_UPGRADED", "value": "yes"}]},
}


def test_an_upgrade_rolls_gateways_and_operator_fails_no_request_and_keeps_every_worker(
    world: World, release: Release, clients: Clients, demo: Key, model: str, progress: Progress
) -> None:
    workers, before = _uids(world, "worker"), _uids(world, "gateway", "operator")
    with clients.load(demo, model) as load, progress.step("helm upgrade"):
        release.upgrade(CHANGED)
    progress.fact("upgrade", load.summary)
    after = _uids(world, "gateway", "operator")
    assert workers
    assert before
    assert after
    assert not before & after, "a pod of gateway or operator was not replaced"
    load.require_no_failure()
    assert _uids(world, "worker") == workers
    assert world.condition(model, "Available", names.NAMESPACE)["status"] == "True"


def test_a_rollback_fails_no_request_and_keeps_every_worker(
    world: World, release: Release, clients: Clients, demo: Key, model: str, progress: Progress
) -> None:
    workers = _uids(world, "worker")
    assert workers
    with clients.load(demo, model) as load, progress.step("helm rollback"):
        release.rollback()
    progress.fact("rollback", load.summary)
    load.require_no_failure()
    assert _uids(world, "worker") == workers
    operator = world.kube.get(f"/apis/apps/v1/namespaces/{names.NAMESPACE}/deployments/{names.OPERATOR}")
    assert "hanmaru.test/upgraded" not in operator["spec"]["template"]["metadata"].get("annotations", {})


def _uids(world: World, *components: str) -> set[str]:
    """Of the release's namespace, those that end left out."""
    selector = f"{LABEL_COMPONENT}+in+({','.join(components)})".replace(",", "%2C")
    pods = world.kube.pods(names.NAMESPACE, selector)
    return set(uids([pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]).values())
