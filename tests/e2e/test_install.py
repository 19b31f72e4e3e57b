"""From an empty cluster to answers: helm, the operator, a worker with real SGLang, and the clients that users have."""

from __future__ import annotations

import pytest
from hanmaru_contracts.names import LABEL_COMPONENT
from hanmaru_e2e import release as names
from hanmaru_e2e.kube import Manifest
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.release import Release
from hanmaru_e2e.world import Clients, Key, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_main_chart_refuses_while_the_definitions_are_missing(release_without_definitions: str) -> None:
    assert "hanmaru-crds" in release_without_definitions


@pytest.fixture
def release_without_definitions(request: pytest.FixtureRequest, world: World) -> str:
    """What helm says. Must come before the release that every other test uses."""
    crds = world.kube.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tenants.serving.hanmaru.dev")
    if crds is not None:
        pytest.skip("somebody has installed the definitions already")
    chart = str(names.CHARTS / "hanmaru")
    with pytest.raises(RuntimeError) as refused:
        Release(world.target).helm("install", names.NAME, chart, "-n", names.NAMESPACE)
    return str(refused.value)


def test_helm_installs_and_the_operator_makes_a_worker_that_serves(
    world: World, release: Release, model: str, progress: Progress
) -> None:
    [pod] = world.serving(model, names.NAMESPACE)
    assert pod["spec"]["containers"][0]["image"] == world.target.images["worker"]
    progress.fact("nodes", len(world.kube.items("/api/v1/nodes")))


def test_the_openai_client_is_answered_through_the_service(clients: Clients, demo: Key, model: str) -> None:
    assert clients.ask("models", demo, model)["models"] == [model]
    whole = clients.ask("openai", demo, model)
    assert whole["status"] == 200, whole
    assert whole["text"], whole
    streamed = clients.ask("stream", demo, model)
    assert streamed["status"] == 200, streamed
    assert streamed["pieces"] > 3, streamed
    assert streamed["tokens"] == whole["tokens"] == 24


def test_a_grpc_client_is_answered_through_the_service(clients: Clients, demo: Key, model: str) -> None:
    answer = clients.ask("grpc", demo, model)
    assert answer["status"] == 200, answer
    assert answer["text"], answer
    assert answer["tokens"], answer


def test_helm_test_asks_and_is_answered(release: Release, model: str) -> None:
    release.helm("test", names.NAME, "-n", names.NAMESPACE, "--timeout", "120s")


def test_every_pod_is_held_to_pod_security_restricted(world: World, model: str) -> None:
    for namespace in (names.NAMESPACE,):
        labels = world.kube.get(f"/api/v1/namespaces/{namespace}")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    tokens = {
        pod["metadata"]["labels"].get(LABEL_COMPONENT) for pod in world.kube.pods(names.NAMESPACE) if _has_token(pod)
    }
    assert tokens == {"operator"}


def _has_token(pod: Manifest) -> bool:
    sources = [
        source for volume in pod["spec"].get("volumes", ()) for source in volume.get("projected", {}).get("sources", ())
    ]
    return any("serviceAccountToken" in source for source in sources)
