from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.objects import Event
from hanmaru_cli.doctor.platform_checks import LABEL_PART_OF
from hanmaru_cli.doctor.pod_checks import check_pods
from hanmaru_contracts.names import GATE_GROUP, LABEL_DEPLOYMENT
from hanmaru_testing.doctor_world import listed, part, pod, words, world, worst


def container(**state: Any) -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"name": "engine", "image": "ghcr.io/x/y:1", **state}]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


UNREADY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}


@pytest.mark.parametrize(
    ("given", "mark", "said"),
    [
        (pod(), Mark.OK, ""),
        (pod({"phase": "Pending"}, [GATE_GROUP], **{LABEL_DEPLOYMENT: "k-exaone"}), Mark.WARN, "md/k-exaone -n models"),
        (pod({"phase": "Pending"}, [GATE_GROUP, "kueue.x-k8s.io/admission"]), Mark.WARN, "kueue"),
        (pod({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}), Mark.FAIL,
         "0/2 nodes"),
        (pod(container(**waiting("ImagePullBackOff", "not found"))), Mark.FAIL, "ghcr.io/x/y:1"),
        (pod(container(**waiting("CreateContainerConfigError", 'secret "x" not found'))), Mark.FAIL, "Secret"),
        (pod(container(**waiting("ContainerCreating"))), Mark.OK, ""),
        (pod(container(lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}}, restartCount=2)), Mark.FAIL,
         "2 restarts"),
        (pod(container(lastState={"terminated": {"reason": "Error", "exitCode": 2}}, **waiting("CrashLoopBackOff"))),
         Mark.FAIL, "status 2"),
        (pod(container(lastState={"terminated": {"exitCode": 2}}, restartCount=2, state={"running": {}})), Mark.WARN,
         "ended 2 times, last with status 2"),
        (pod(container(lastState={"terminated": {"exitCode": 0}}, restartCount=9, ready=True)), Mark.OK, ""),
        (pod({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}), Mark.FAIL, "low on"),
        (pod({"phase": "Succeeded"}), Mark.OK, ""),
        (pod(UNREADY, **{LABEL_PART_OF: "hanmaru"}), Mark.WARN, "runs, and is not ready"),
        (pod(UNREADY), Mark.OK, ""),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_run_is_named(given: Any, mark: Mark, said: str) -> None:
    findings = check_pods(world(pods=listed(given)))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def event(message: str, at: str = "2026-11-22T00:00:00Z") -> Event:
    raw = {
        "metadata": {"namespace": "hanmaru"},
        "reason": "FailedCreate",
        "message": message,
        "lastTimestamp": at,
        "involvedObject": {"kind": "ReplicaSet", "name": "hanmaru-gateway-5d4f"},
    }
    return msgspec.convert(raw, Event)


SHORT = msgspec.structs.replace(part("gateway"), status=msgspec.structs.replace(part("gateway").status, replicas=0))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
         'Pod Security "restricted:latest" refuses its pods: allowPrivilegeEscalation'),
        ("exceeded quota: gpus", "exceeded quota"),
    ],
)  # fmt: skip
def test_pods_that_were_never_made_have_the_servers_reason(message: str, said: str) -> None:
    findings = check_pods(world(workloads=listed(SHORT), events=listed(event("older", "2026-01-01"), event(message))))
    assert (worst(findings), said in words(findings)) == (Mark.FAIL, True)


def test_an_old_refusal_of_pods_that_are_there_by_now_is_left_out() -> None:
    assert worst(check_pods(world(events=listed(event("exceeded quota"))))) is Mark.OK
