"""The control plane that other tests stand on does what they rely on: every controller they need, and faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.flags import HEARTBEAT_TIMEOUT_S
from hanmaru_cluster.kwok import HOLD_READY, HOLD_TERMINATION
from hanmaru_cluster.nodes import Nodes
from hanmaru_testing.cluster_fixtures import Kubectl

DEVICE = "nvidia.com/gpu"


@pytest.fixture
def run(kubectl: Kubectl, namespace: str) -> Callable[..., str]:
    """Kubectl in the test's namespace; the words are split at spaces."""

    def in_namespace(words: str, stdin: object = None) -> str:
        return kubectl("-n", namespace, *words.split(), stdin=None if stdin is None else json.dumps(stdin))

    return in_namespace


def _pod(
    name: str, selector: Mapping[str, str], *, devices: int = 0, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    resources = {"limits": {DEVICE: str(devices)}} if devices else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "x"}, "annotations": dict(annotations or {})},
        "spec": {"nodeSelector": dict(selector), "containers": [{"name": "c", "image": "x", "resources": resources}]},
    }


def _stateful_set(selector: Mapping[str, str], replicas: int) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "s"},
        "spec": {
            "replicas": replicas,
            "serviceName": "s",
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": _pod("unnamed", selector)["spec"]},
        },
    }


def test_pods_bind_only_while_devices_last(nodes: Nodes, run: Callable[..., str]) -> None:
    nodes.add(capacity={DEVICE: "8"}, allocatable={DEVICE: "4"})
    run("apply -f -", _pod("fits", nodes.selector, devices=4))
    run("wait --for=condition=Ready pod/fits --timeout=20s")
    run("apply -f -", _pod("waits", nodes.selector, devices=1))
    run("wait --for=condition=PodScheduled=False pod/waits --timeout=20s")
    nodes.add(capacity={DEVICE: "8"})
    run("wait --for=condition=Ready pod/waits --timeout=20s")


def test_a_held_pod_runs_unready_until_it_is_released_and_can_be_held_again(
    nodes: Nodes, run: Callable[..., str]
) -> None:
    nodes.add()
    run("apply -f -", _pod("p", nodes.selector, annotations={HOLD_READY: ""}))
    run("wait --for=jsonpath={.status.phase}=Running pod/p --timeout=20s")
    run("wait --for=condition=Ready=False pod/p --timeout=20s")
    run(f"annotate pod p {HOLD_READY}-")
    run("wait --for=condition=Ready pod/p --timeout=20s")
    run(f"annotate pod p {HOLD_READY}=")
    run("wait --for=condition=Ready=False pod/p --timeout=20s")


def test_a_deleted_pod_ends_unless_its_termination_is_held(nodes: Nodes, run: Callable[..., str]) -> None:
    nodes.add()
    run("apply -f -", _pod("ends", nodes.selector))
    run("apply -f -", _pod("stays", nodes.selector, annotations={HOLD_TERMINATION: ""}))
    run("wait --for=condition=Ready pod/ends pod/stays --timeout=20s")
    run("delete pod ends --timeout=20s")
    run("delete pod stays --wait=false")
    run("wait --for=jsonpath={.metadata.deletionTimestamp} pod/stays --timeout=20s")
    run(f"annotate pod stays {HOLD_TERMINATION}-")
    run("wait --for=delete pod/stays --timeout=20s")


def test_a_cut_node_is_tainted_keeps_its_pods_and_comes_back(
    nodes: Nodes, run: Callable[..., str], kubectl: Kubectl
) -> None:
    nodes.add()  # another one stays: with no node left the controller manager suspects itself, and evicts nothing
    (cut,) = nodes.add(labels={"cut": "me"})
    on_the_cut = {**nodes.selector, "cut": "me"}
    run("apply -f -", _pod("p", on_the_cut))
    run("wait --for=condition=Ready pod/p --timeout=20s")
    nodes.cut(cut)
    kubectl("wait", "--for=condition=Ready=Unknown", f"node/{cut}", f"--timeout={HEARTBEAT_TIMEOUT_S + 10}s")
    taint = '{.spec.taints[?(@.effect=="NoExecute")].key}'
    kubectl("wait", f"--for=jsonpath={taint}=node.kubernetes.io/unreachable", f"node/{cut}", "--timeout=20s")
    run("wait --for=condition=Ready=False pod/p --timeout=20s")
    run("delete pod p --wait=false")
    with pytest.raises(RuntimeError, match="timed out"):
        run("wait --for=delete pod/p --timeout=1s")
    nodes.restore(cut)
    kubectl("wait", "--for=condition=Ready", f"node/{cut}", "--timeout=20s")
    run("wait --for=delete pod/p --timeout=20s")
    run("apply -f -", _pod("next", on_the_cut))
    run("wait --for=condition=Ready pod/next --timeout=20s")


def test_the_api_server_goes_away_and_comes_back_with_everything(
    nodes: Nodes, run: Callable[..., str], control_plane: ControlPlane
) -> None:
    nodes.add()
    run("apply -f -", _stateful_set(nodes.selector, 1))
    run("rollout status statefulset/s --timeout=20s")
    control_plane.stop_apiserver()
    assert not control_plane.api.is_ready()
    control_plane.start_apiserver()
    run("scale statefulset/s --replicas=2")  # needs the controllers, the scheduler and kwok to find it again
    run("rollout status statefulset/s --timeout=40s")


def test_a_drain_waits_for_the_disruption_budget_and_ends(
    nodes: Nodes, run: Callable[..., str], kubectl: Kubectl
) -> None:
    drained, _ = nodes.add(2)
    run("apply -f -", _stateful_set(nodes.selector, 2))
    run("rollout status statefulset/s --timeout=20s")
    run("create poddisruptionbudget b --selector=app=x --min-available=1")
    run("wait --for=jsonpath={.status.disruptionsAllowed}=1 pdb/b --timeout=20s")
    kubectl("drain", drained, "--timeout=40s")
    run("rollout status statefulset/s --timeout=20s")
    assert drained not in run("get pods -o jsonpath={.items[*].spec.nodeName}")


def test_an_autoscaler_raises_to_its_minimum_without_metrics(nodes: Nodes, run: Callable[..., str]) -> None:
    nodes.add()
    run("apply -f -", _stateful_set(nodes.selector, 1))
    spec = {"minReplicas": 2, "maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet"}}
    spec["scaleTargetRef"]["name"] = "s"  # type: ignore[index]
    run(
        "apply -f -",
        {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": spec},
    )
    run("wait --for=jsonpath={.status.readyReplicas}=2 statefulset/s --timeout=30s")


def test_a_service_lists_the_pods_that_are_ready(nodes: Nodes, run: Callable[..., str]) -> None:
    nodes.add()
    run("create service clusterip x --tcp=80")
    run("label service x --overwrite app=x")
    run("apply -f -", _pod("p", nodes.selector))
    slices = "endpointslices -l kubernetes.io/service-name=x"
    run(f"wait --for=jsonpath={{.endpoints[0].conditions.ready}}=true {slices} --timeout=20s")
    address = run("get pod p -o jsonpath={.status.podIP}")
    assert run(f"get {slices} -o jsonpath={{.items[*].endpoints[*].addresses[*]}}") == address


def test_what_an_owner_leaves_is_collected_and_namespaces_end(
    nodes: Nodes, run: Callable[..., str], kubectl: Kubectl, namespace: str
) -> None:
    nodes.add()
    run("apply -f -", _stateful_set(nodes.selector, 1))
    run("rollout status statefulset/s --timeout=20s")
    run("delete statefulset s")
    run("wait --for=delete pod/s-0 --timeout=20s")
    run("apply -f -", _pod("p", nodes.selector))
    run("wait --for=condition=Ready pod/p --timeout=20s")
    kubectl("delete", "namespace", namespace, "--timeout=30s")


def test_pod_security_is_enforced_where_a_namespace_asks(
    nodes: Nodes, run: Callable[..., str], kubectl: Kubectl, namespace: str
) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(RuntimeError, match="violates PodSecurity"):
        run("apply -f -", _pod("p", nodes.selector))


def test_a_user_may_do_only_what_rbac_allows(control_plane: ControlPlane, run: Callable[..., str]) -> None:
    kubeconfig = control_plane.kubeconfig_for("somebody", ["people"])
    asking = f"get pods --kubeconfig={kubeconfig}"
    with pytest.raises(RuntimeError, match="Forbidden"):
        run(asking)
    run("create rolebinding b --clusterrole=view --group=people")
    deadline_s = time.monotonic() + 10
    while True:  # the authorizer learns of the binding by a watch that nobody else can await
        try:
            run(asking)
        except RuntimeError:
            assert time.monotonic() < deadline_s
        else:
            break
