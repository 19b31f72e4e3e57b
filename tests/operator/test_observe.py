"""What the operator keeps of an object, and what it does not."""

from __future__ import annotations

import base64
import logging
from typing import Any

import pytest
from hanmaru_contracts import names
from hanmaru_operator.observe import MAX_SECRET_VALUE_CHARS, entry_of, pod_requests, readable_entry

OURS = {"app.kubernetes.io/managed-by": "hanmaru"}


def raw(labels: dict[str, str] | None = None, version: int = 7, **rest: Any) -> dict[str, Any]:
    metadata = {
        "name": "x",
        "namespace": "ns",
        "uid": "u",
        "resourceVersion": str(version),
        "generation": 3,
        "creationTimestamp": "2026-11-22T19:00:00Z",
        "labels": labels or {},
        **rest.pop("metadata", {}),
    }
    return {"metadata": metadata, **rest}


def pod(labels: dict[str, str] | None = None, **rest: Any) -> dict[str, Any]:
    spec = {"nodeName": "n", "containers": [{"resources": {"requests": {"cpu": "500m"}}}]}
    return raw(labels, **{"spec": spec, "status": {"phase": "Running"}, **rest})


READY = {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T19:01:00Z"}]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "1"}}}, {}]}, {"cpu": 1.0}),
        ({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "8"}}}]}, {"nvidia.com/gpu": 8.0}),
        (  # an init container alone, greater than what runs later
            {
                "initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
            },
            {"cpu": 3.0},
        ),
        (  # a sidecar runs beside both
            {
                "initContainers": [
                    {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                    {"resources": {"requests": {"cpu": "3"}}},
                ],
                "containers": [{"resources": {"requests": {"cpu": "2"}}}],
            },
            {"cpu": 4.0},
        ),
        (
            {"containers": [{"resources": {"requests": {"memory": "1Gi"}}}], "overhead": {"memory": "1Mi"}},
            {"memory": 2.0**30 + 2**20},
        ),
        (  # the pod's own requests stand in place of its containers'
            {"resources": {"requests": {"cpu": "5"}}, "containers": [{"resources": {"requests": {"cpu": "1"}}}]},
            {"cpu": 5.0},
        ),
    ],
)
def test_a_pod_takes_what_the_scheduler_counts(spec: dict[str, Any], expected: dict[str, float]) -> None:
    assert pod_requests(spec) == {**expected, "pods": 1.0}


def test_of_others_pods_only_their_room_is_kept() -> None:
    before = entry_of("Pod", pod({"app": "x"}))
    after = entry_of("Pod", pod({"app": "y"}, version=8, status={"phase": "Running", "podIP": "1.2.3.4", **READY}))
    assert before.labels == {}
    assert before.says_the_same(after)
    ended = entry_of("Pod", pod(status={"phase": "Succeeded"}))
    assert not before.says_the_same(ended)


def test_our_pods_tell_their_group_their_plan_and_their_state() -> None:
    labels = {
        **OURS,
        "serving.hanmaru.dev/replica": "m-abcde",
        "apps.kubernetes.io/pod-index": "1",
    }
    annotations = {
        "serving.hanmaru.dev/planned-node": "n7",
        "serving.hanmaru.dev/gate-lifted-at": "2026-11-22T19:00:05Z",
        "serving.hanmaru.dev/lifted-with": "0123456789",
    }
    spec = {"schedulingGates": [{"name": "serving.hanmaru.dev/group"}, {"name": "other/gate"}], "containers": []}
    conditions = [{"type": "DisruptionTarget", "status": "True"}]
    facts = entry_of(
        "Pod", pod(labels, metadata={"annotations": annotations}, spec=spec, status={"conditions": conditions})
    ).pod
    assert (facts.replica, facts.ordinal, facts.planned_node) == ("m-abcde", 1, "n7")
    assert facts.gates == ("serving.hanmaru.dev/group", "other/gate")
    assert facts.gate_lifted_at == facts.created_at + 5
    assert facts.lifted_with == "0123456789"
    assert facts.is_evicted
    assert not facts.is_ready


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "engine", "image": "worker:2", "state": state, **more}]}


def running(**more: Any) -> dict[str, Any]:
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    return {"containerStatuses": [{"name": "engine", "state": {"running": {}}, "lastState": last, **more}]}


READER = {**OURS, names.LABEL_COMPONENT: names.COMPONENT_MODEL_FACTS}
UNSCHEDULABLE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": '0/2 nodes are available: persistentvolumeclaim "models" not found.',
        }
    ]
}


@pytest.mark.parametrize(
    ("labels", "status", "trouble"),
    [
        (OURS, waiting("ContainerCreating"), ""),
        (OURS, waiting("ErrImagePull", "try 1"), "engine: image worker:2 cannot be pulled"),
        (OURS, waiting("ImagePullBackOff", "back-off 40s"), "engine: image worker:2 cannot be pulled"),
        (
            OURS,
            waiting("CreateContainerConfigError", 'secret "hub" not found'),
            'engine: CreateContainerConfigError: secret "hub" not found',
        ),
        (
            OURS,
            waiting("CrashLoopBackOff", "back-off 5m", lastState={"terminated": {"exitCode": 137, "reason": "Error"}}),
            "engine: ends again and again, last with exit status 137 (Error)",
        ),
        (OURS, running(started=False, restartCount=2), "engine: ends again and again, last with exit status 1 (Error)"),
        (OURS, running(started=False, restartCount=1), ""),
        (OURS, running(started=True, restartCount=7), ""),
        (READER, UNSCHEDULABLE, '0/2 nodes are available: persistentvolumeclaim "models" not found.'),
        (OURS, UNSCHEDULABLE, ""),
        ({"app": "x"}, waiting("ImagePullBackOff"), ""),
    ],
)
def test_why_a_pod_of_ours_does_not_start_is_known_without_what_changes_by_itself(
    labels: dict[str, str], status: dict[str, Any], trouble: str
) -> None:
    assert entry_of("Pod", pod(labels, status=status)).pod.trouble == trouble


def test_a_heartbeat_says_nothing_new_and_a_cordon_does() -> None:
    def node(heartbeat: str, **spec: Any) -> dict[str, Any]:
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}
        return raw(spec=spec, status={"allocatable": {"cpu": "4"}, "conditions": [ready]})

    first = entry_of("Node", node("2026-11-22T19:00:00Z"))
    assert first.node.is_ready
    assert first.says_the_same(entry_of("Node", node("2026-11-22T19:05:00Z")))
    assert not first.says_the_same(entry_of("Node", node("2026-11-22T19:05:00Z", unschedulable=True)))


@pytest.mark.parametrize(
    ("change", "is_an_edit"),
    [
        ({"spec": {"replicas": 2}}, True),
        ({"metadata": {"annotations": {"a": "b"}}}, True),
        ({"metadata": {"ownerReferences": []}}, True),
        ({"status": {"readyReplicas": 1}}, False),
        ({"metadata": {"managedFields": [{"manager": "kubectl"}]}}, False),
    ],
)
def test_a_hands_edit_changes_the_digest_and_a_controllers_status_does_not(
    change: dict[str, Any], is_an_edit: bool
) -> None:
    before = entry_of("StatefulSet", raw(OURS, spec={"replicas": 1}))
    after = entry_of("StatefulSet", raw(OURS, **{"spec": {"replicas": 1}, **change}))
    assert (before.digest != after.digest) is is_an_edit
    assert before.says_the_same(after) is not is_an_edit


def test_our_own_status_is_no_news() -> None:
    before = entry_of("ModelDeployment", raw(spec={"replicas": 1}))
    after = entry_of("ModelDeployment", raw(version=8, spec={"replicas": 1}, status={"replicas": 1}))
    assert before.says_the_same(after)
    assert after.status == {"replicas": 1}


def test_a_secrets_text_is_in_no_repr_and_big_values_are_not_held() -> None:
    data = {"key": base64.b64encode(b"hmk_secret").decode(), "release": "x" * (MAX_SECRET_VALUE_CHARS + 1)}
    entry = entry_of("Secret", raw(data=data))
    assert entry.data == {"key": data["key"]}
    assert data["key"] not in repr(entry)


def test_nonsense_in_an_annotation_hides_no_pod() -> None:
    odd = pod(OURS, metadata={"annotations": {"serving.hanmaru.dev/gate-lifted-at": "yesterday"}})
    facts = entry_of("Pod", odd).pod
    assert facts.gate_lifted_at is None
    assert facts.requests["cpu"] == 0.5


def test_what_cannot_be_read_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert readable_entry("Node", raw(status={"allocatable": {"cpu": "many"}})) is None
    assert "object.unreadable" in caplog.text
