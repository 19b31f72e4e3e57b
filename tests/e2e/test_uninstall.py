"""`helm uninstall` with a live deployment: quick, and nothing but definitions and what users own is left."""

from __future__ import annotations

import time

import pytest
from hanmaru_contracts.crd.kinds import GROUP
from hanmaru_e2e import release as names
from hanmaru_e2e.progress import Progress
from hanmaru_e2e.release import Release
from hanmaru_e2e.world import CLIENTS, MODELS, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BOUND_S = 60.0
USERS = "own"
_NAMESPACED = (
    "deployments.apps", "statefulsets.apps", "services", "configmaps", "serviceaccounts", "secrets", "pods",
    "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy", "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io", "horizontalpodautoscalers.autoscaling",
    "jobs.batch", "leases.coordination.k8s.io",
)  # fmt: skip
_USERS_TOO = ("modeldeployments.serving.hanmaru.dev", "tenants.serving.hanmaru.dev")
"""Users make their own in the release's namespace; the release's have its label."""
_OF_THE_CLUSTER = (
    "clusterroles", "clusterrolebindings", "acceleratorpools.serving.hanmaru.dev", "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations", "priorityclasses",
)  # fmt: skip


def test_an_uninstall_with_a_live_deployment_is_quick_and_leaves_what_users_own(
    world: World, release: Release, model: str, progress: Progress
) -> None:
    world.claims(MODELS)
    # A user's deployment, on the release's pool since a node counts for its oldest pool alone; its worker need not
    # serve to be alive.
    world.deploy(USERS, names.POOL)
    world.kube.wait(
        "its worker runs",
        lambda: [pod for pod in world.workers(USERS) if pod["status"].get("phase") == "Running"],
        within_s=120,
    )
    workers = {pod["metadata"]["uid"] for pod in world.workers(USERS)}
    tenants = _users_tenants(world)

    begun_s = time.monotonic()
    with progress.step("helm uninstall"):
        release.uninstall()
        left_s = BOUND_S - (time.monotonic() - begun_s)
        going: list[str] = []

        def is_gone() -> bool:
            left = _left(world)
            going[:] = left or going
            if left:
                raise RuntimeError(f"left are {', '.join(left)}")
            return True

        world.kube.wait("nothing of the release is left", is_gone, within_s=left_s)
    progress.fact("uninstallSeconds", round(time.monotonic() - begun_s, 1))
    progress.fact("wentLast", going)
    assert time.monotonic() - begun_s <= BOUND_S

    assert workers == {pod["metadata"]["uid"] for pod in world.workers(USERS)}, "a user's worker was not left alone"
    assert _users_tenants(world) == tenants
    crds = world.kube.items("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
    assert len([crd for crd in crds if crd["spec"]["group"] == GROUP]) == 3


def test_the_definitions_stay_when_their_chart_is_uninstalled(world: World, release: Release) -> None:
    release.helm("uninstall", "hanmaru-crds", "-n", names.NAMESPACE, "--wait", "--timeout", "60s")
    assert world.kube.find(world.deployment_path(USERS))


def test_users_namespaces_delete_afterwards(world: World, progress: Progress) -> None:
    with progress.step("the users' namespaces are gone"):
        world.kube.kubectl("delete", "namespace", MODELS, CLIENTS, names.NAMESPACE, "--wait", "--timeout=120s")


def _left(world: World) -> list[str]:
    """Objects of the release; its platform secret, and what the tests made themselves, are users'."""
    of_namespace = world.kube.kubectl("-n", names.NAMESPACE, "get", ",".join(_NAMESPACED), "-o", "name").split()
    selector = f"app.kubernetes.io/instance={names.NAME}"
    kinds = ",".join((*_OF_THE_CLUSTER, *_USERS_TOO))
    labelled = world.kube.kubectl("get", kinds, "-A", "-o", "name", "-l", selector).split()
    return [name for name in of_namespace if not _is_users(name)] + labelled


def _users_tenants(world: World) -> list[str]:
    """In the release's namespace."""
    others = f"app.kubernetes.io/instance!={names.NAME}"
    return world.kube.kubectl("-n", names.NAMESPACE, "get", _USERS_TOO[1], "-o", "name", "-l", others).split()


def _is_users(name: str) -> bool:
    own = ("configmap/kube-root-ca.crt", "serviceaccount/default", f"secret/{names.NAME}-platform")
    return name in own or name.startswith("secret/sh.helm.release") or _is_tenants_key(name)


def _is_tenants_key(name: str) -> bool:
    return name.startswith("secret/") and name.endswith("-key")
