"""Gives life to nodes and pods that are only API objects: readiness, heartbeats, addresses, deletion.

`control_plane` starts kwok with this configuration; `nodes` makes the nodes. What a test can do to them:

- a pod annotated HOLD_READY runs but is not ready, until the annotation goes (put it in the pod template to hold a pod
  from its birth, or on a ready pod to make it unready);
- a pod annotated HOLD_TERMINATION stays Terminating when it is deleted, until the annotation goes;
- a node without the HEARTBEAT label is as if cut off: its lease is not renewed, its pods neither start nor end, and the
  controller manager soon finds it unreachable (`Nodes.cut` and `Nodes.restore`);
- any other state is written to a pod's `status` subresource: kwok leaves Failed and Succeeded pods alone.

Readiness gates, probes and completing Jobs are not imitated: a container is ready because nothing holds it.
"""

from __future__ import annotations

import json
from typing import Any

HOLD_READY = "cluster.hanmaru.test/hold-ready"
"""Annotation of a pod that is to run without being ready; any value."""
HOLD_TERMINATION = "cluster.hanmaru.test/hold-termination"
"""Annotation of a pod that is not to end when it is deleted; any value."""
HEARTBEAT = "cluster.hanmaru.test/heartbeat"
"""Label of the nodes that kwok keeps alive."""
_NODE_STATUS = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
"""
_POD_STATUS = """
{{ $now := Now }}
{{ $ready := "True" }}
{{ with .metadata.annotations }}{{ if hasKey . "HOLD_READY" }}{{ $ready = "False" }}{{ end }}{{ end }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
- {type: PodReadyToStartContainers, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: {{ $ready | Quote }}, lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: {{ $ready | Quote }}, lastTransitionTime: {{ $now | Quote }}}
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  restartCount: 0
  {{ if eq .restartPolicy "Always" }}
  started: true
  state: {running: {startedAt: {{ $now | Quote }}}}
  {{ else }}
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
  {{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: {{ eq $ready "True" }}
  started: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
{{ with NodeIPsWith .spec.nodeName }}
hostIP: {{ index . 0 | Quote }}
{{ end }}
{{ if not .status.podIP }}
{{ with PodIPsWith .spec.nodeName (or .spec.hostNetwork false) .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index . 0 | Quote }}
podIPs:
- ip: {{ index . 0 | Quote }}
{{ end }}
{{ end }}
""".replace("HOLD_READY", HOLD_READY)


def config() -> str:
    """The file that tells kwok which object gets which status, and when."""
    return "\n---\n".join(json.dumps(stage) for stage in _stages())


def _stages() -> list[dict[str, Any]]:
    ready = '.status.conditions.[] | select(.type == "Ready") | .status'
    alive = [_absent(".metadata.deletionTimestamp"), _expression(".status.phase", "In", ["Pending", "Running"])]
    held = f'.metadata.annotations["{HOLD_READY}"]'
    ending = [_present(".metadata.deletionTimestamp"), _absent(f'.metadata.annotations["{HOLD_TERMINATION}"]')]
    becomes_ready = [*alive, _absent(held), _expression(ready, "NotIn", ["True"])]
    becomes_unready = [*alive, _present(held), _expression(ready, "NotIn", ["False"])]
    return [
        _stage("Node", "node-ready", [_expression(ready, "NotIn", ["True"])], {"statusTemplate": _NODE_STATUS}),
        _stage("Pod", "pod-ready", becomes_ready, {"statusTemplate": _POD_STATUS}),
        _stage("Pod", "pod-held-unready", becomes_unready, {"statusTemplate": _POD_STATUS}),
        _stage("Pod", "pod-ends", ending, {"delete": True}),
    ]


def _stage(kind: str, name: str, when: list[dict[str, Any]], then: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "next": then,
        },
    }


def _present(key: str) -> dict[str, Any]:
    return {"key": key, "operator": "Exists"}


def _absent(key: str) -> dict[str, Any]:
    return {"key": key, "operator": "DoesNotExist"}


def _expression(key: str, operator: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": values}
