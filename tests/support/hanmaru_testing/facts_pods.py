"""Stands in for the kubelet where a model's facts are read: kwok runs no container, so this plays the one that reads.

It runs the operator image's own code on a checkpoint of this repository, chosen by the claim the pod mounts, and
writes what that says into the pod's status, as a kubelet would write the termination message.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_contracts.names import COMPONENT_MODEL_FACTS, LABEL_COMPONENT
from hanmaru_operator.inspect_model import from_folder

_INTERVAL_S = 0.2


class FactsPods:
    """Answers every model-facts pod of the cluster; a context manager. `checkpoints`: folder by claim name."""

    def __init__(self, api: ApiClient, checkpoints: Mapping[str, Path]) -> None:
        self.checkpoints = dict(checkpoints)
        self._api = api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="facts-pods", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                pods = self._api.get(f"/api/v1/pods?labelSelector={LABEL_COMPONENT}={COMPONENT_MODEL_FACTS}")["items"]
                for pod in pods:
                    # As a kubelet, which gets pods from the scheduler: one whose claim is missing has no node.
                    if pod["spec"].get("nodeName") and pod["status"].get("phase") not in ("Succeeded", "Failed"):
                        self._answer(pod)
            except (ApiError, OSError, http.client.HTTPException):
                continue  # the API server is away, which some tests want

    def _answer(self, pod: dict[str, Any]) -> None:
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        folder = self.checkpoints.get(claims[0]) if claims else None
        if folder is None:
            return  # as a pod whose volume cannot be mounted
        report = from_folder(folder)
        code = 0 if report.facts is not None else 1
        name = pod["spec"]["containers"][0]["name"]
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": report.line()}
        container = {
            "name": name,
            "image": "operator",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        status = {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": [container]}
        self._api.patch(path, {"status": status})
