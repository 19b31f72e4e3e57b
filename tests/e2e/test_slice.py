"""The whole once, as quickly as it goes: helm install on two real nodes, one request answered by SGLang, uninstall.

Part of `make test`. As root a missing part is a failure; without root there is no such cluster, and that is the reason.
"""

from __future__ import annotations

import os

import pytest
from hanmaru_cluster import machine
from hanmaru_e2e import release as names
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.target import ENV_KUBECONFIG
from hanmaru_e2e.world import CLIENTS, MODELS, World

pytestmark = pytest.mark.timeout(900)
WHY_NOT = None if os.environ.get(ENV_KUBECONFIG) or os.geteuid() == 0 else machine.cannot()


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_an_installation_answers_one_request_and_goes(request: pytest.FixtureRequest, progress: Progress) -> None:
    world: World = request.getfixturevalue("world")
    release, clients = request.getfixturevalue("release"), request.getfixturevalue("clients")
    answer = clients.ask("stream", request.getfixturevalue("demo"), request.getfixturevalue("model"))
    assert answer["status"] == 200, answer
    assert answer["tokens"] == 24, answer
    with progress.step("helm uninstall"):
        release.uninstall()
    release.helm("uninstall", "hanmaru-crds", "-n", names.NAMESPACE, "--wait", "--timeout", "60s")
    with progress.step("the pods are gone"):
        # Kubernetes looks at a namespace with pods again only after half of their longest grace period: minutes.
        world.kube.wait("no pod is left", lambda: not world.kube.pods(names.NAMESPACE), within_s=120)
    with progress.step("the namespaces are gone"):
        namespaces = (MODELS, CLIENTS, names.NAMESPACE)
        world.kube.kubectl("delete", "namespace", *namespaces, "--wait", "--timeout=120s", timeout_s=150)
