"""The operator's process on a real control plane: start, changes, memory, and what a resync writes. Called by `run.py`.

A change is one edit of a deployment's spec; its time runs from the moment before the request is sent until a watch of
the StatefulSets shows the child that must follow: one more, one of a new revision, or one that is being deleted. The
API server, its controllers and kwok share the machine's cores with the operator, as do other programs.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from cluster_rig import DEPLOYMENTS, NAMESPACE, OURS, SYSTEM, Size, add_deployments, add_ground, name_of
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_cluster.nodes import Nodes
from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_MANAGED_BY, LABEL_REVISION, MANAGED_BY
from hanmaru_operator.connection import read_connection
from hanmaru_testing.crds import install
from hanmaru_testing.operator_process import OperatorProcess
from hanmaru_testing.redis_server import RedisServer
from lightkube.config.client_adapter import Client, ConnectionParams

FILL_LIMIT_S = 900.0
CHANGE_LIMIT_S = 30.0
RESYNC_S = 15.0
RESYNCS = 3
_WRITES = ("apply", "apply_status", "patch", "create", "delete")
"""As the operator counts its requests; `update` is the lease's renewal and nothing else."""
_OURS_ONLY = f"labelSelector={LABEL_MANAGED_BY}={MANAGED_BY}"
_CHILDREN = (
    "/apis/apps/v1/{}/statefulsets",
    "/apis/apps/v1/{}/controllerrevisions",
    "/api/v1/{}/services",
    "/api/v1/{}/secrets",
    "/api/v1/{}/configmaps",
    "/api/v1/{}/serviceaccounts",
    "/api/v1/{}/pods",
    "/apis/networking.k8s.io/v1/{}/networkpolicies",
    "/apis/policy/v1/{}/poddisruptionbudgets",
)


_GROUPS = f"{_CHILDREN[0].format(f'namespaces/{NAMESPACE}')}?{_OURS_ONLY}"
_MERGE = {"Content-Type": "application/merge-patch+json"}


@dataclass(slots=True)
class Result:
    """What was seen; seconds unless it says otherwise."""

    fill_s: float = 0.0
    """From the operator's start until every deployment was complete."""
    fill_cpu_s: float = 0.0
    apply_s: list[float] = field(default_factory=list)
    """One a change."""
    change_cpu_ms: float = 0.0
    """The operator's CPU for one change and all that follows from it."""
    rss_mb: float = 0.0
    """The most it ever held."""
    idle_rss_mb: float = 0.0
    """After the changes."""
    start_s: float = 0.0
    """A restart beside all objects: from the process's start until everything is listed."""
    settle_s: float = 0.0
    """And until it had looked at all of it once."""
    settle_cpu_s: float = 0.0
    restart_writes: int = 0
    """Requests that a restart costs: each child is applied once, which changes nothing."""
    restart_changes: int = 0
    """Objects of which that made another version."""
    resync_writes: int = 0
    """Requests to write in `RESYNCS` resyncs."""
    resync_changes: int = 0
    """Objects whose version changed meanwhile."""
    resync_cpu_s: float = 0.0
    """Of one resync."""
    objects: int = 0
    """In the operator's memory."""


def measure(size: Size, folder: Path, say: Callable[[str], None]) -> Result:
    """All of it; some minutes."""
    result = Result()
    with ControlPlane(heartbeat_timeout_s=80) as plane, RedisServer() as redis, Nodes(plane.api) as nodes:
        install(plane.api)
        pools = add_ground(plane, nodes, size)
        add_deployments(plane, size, pools)
        say(f"{size.nodes} nodes in {pools} pools and {size.deployments + size.active} deployments are there")
        make: dict[str, Any] = {"kubeconfig": plane.kubeconfig, "redis_url": redis.url, "namespace": SYSTEM}
        lease = {"leaseS": 15.0, "renewDeadlineS": 10.0, "retryS": 2.0}
        with OperatorProcess(folder, name="first", lease=lease, **make) as operator:
            _fill(plane, operator, size, result, say)
            _change(plane, operator, size, result, say)
            result.idle_rss_mb = memory_mb(operator, "VmRSS")
            result.rss_mb = memory_mb(operator, "VmHWM")
        before = versions(plane)
        with OperatorProcess(folder, name="second", lease=lease, resyncIntervalS=RESYNC_S, **make) as operator:
            _restart(plane, operator, before, result, say)
            _resync(plane, operator, result, say)
            result.rss_mb = max(result.rss_mb, memory_mb(operator, "VmHWM"))
            result.objects = round(sum(read_metrics(operator, "hanmaru_operator_objects").values()))
    return result


def _fill(
    plane: ControlPlane, operator: OperatorProcess, size: Size, result: Result, say: Callable[[str], None]
) -> None:
    begun = time.monotonic()
    operator.await_event("resync.ended")
    while (ready := ready_replicas(plane)) < size.deployments + size.active:
        if time.monotonic() - begun > FILL_LIMIT_S:
            raise RuntimeError(f"{ready} deployments are ready after {FILL_LIMIT_S:.0f} s\n{operator.tail()}")
        time.sleep(2)
    await_idle(operator)
    result.fill_s, result.fill_cpu_s = time.monotonic() - begun, cpu_s(operator)
    say(f"all are running after {result.fill_s:.0f} s ({result.fill_cpu_s:.0f} s of the operator's CPU)")


def _change(
    plane: ControlPlane, operator: OperatorProcess, size: Size, result: Result, say: Callable[[str], None]
) -> None:
    used_s = cpu_s(operator)
    connection = read_connection({"KUBECONFIG": str(plane.kubeconfig)})
    with Client(connection, ConnectionParams()) as http, Children(http) as children:
        for number in range(size.changes):
            name = name_of(size.deployments + number % size.active)
            path = f"{DEPLOYMENTS}/{name}"
            spec, is_there = _edit(children, name, number // size.active)
            begun = time.monotonic()
            http.patch(path, json={"spec": spec}, headers=_MERGE).raise_for_status()
            result.apply_s.append(children.wait(is_there) - begun)
            await_complete(http, path)
    await_idle(operator)
    result.change_cpu_ms = (cpu_s(operator) - used_s) * 1e3 / size.changes
    say(f"{size.changes} changes were made")


def _edit(children: Children, name: str, turn: int) -> tuple[dict[str, Any], Callable[[], bool]]:
    """Its turn's edit, and what shows in its children afterwards."""
    before = dict(children.of(name))

    def is_added() -> bool:
        return any(group not in before for group in children.of(name))

    def is_new_revision() -> bool:
        return bool(set(children.of(name).values()) - set(before.values()))

    def is_removed() -> bool:
        return len(children.of(name)) < len(before)

    edits: list[tuple[dict[str, Any], Callable[[], bool]]] = [
        ({"replicas": 2}, is_added),
        ({"serving": {"contextTokens": 8192 + 16 * turn}}, is_new_revision),
        ({"replicas": 1}, is_removed),
    ]
    return edits[turn % len(edits)]


def _restart(
    plane: ControlPlane,
    operator: OperatorProcess,
    before: dict[str, str],
    result: Result,
    say: Callable[[str], None],
) -> None:
    begun = time.monotonic()
    operator.await_event("resync.ended")
    result.start_s = time.monotonic() - begun
    await_idle(operator)
    result.settle_s, result.settle_cpu_s = time.monotonic() - begun, cpu_s(operator)
    result.restart_writes = writes(operator)
    result.restart_changes = count_changes(before, versions(plane))
    say(f"restarted: listed after {result.start_s:.1f} s, everything looked at after {result.settle_s:.0f} s")


def _resync(plane: ControlPlane, operator: OperatorProcess, result: Result, say: Callable[[str], None]) -> None:
    before, written, used_s = versions(plane), writes(operator), cpu_s(operator)
    seen = operator.log.read_text().count("resync.ended")
    while operator.log.read_text().count("resync.ended") < seen + RESYNCS:
        time.sleep(1)
    await_idle(operator)
    result.resync_writes = writes(operator) - written
    result.resync_changes = count_changes(before, versions(plane))
    result.resync_cpu_s = (cpu_s(operator) - used_s) / RESYNCS
    say(f"{RESYNCS} resyncs wrote {result.resync_writes} times")


# --- what is read ----------------------------------------------------------------------------------------------------


class Children:
    """The deployments' StatefulSets as a watch shows them, by deployment; a context manager."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._groups: dict[str, dict[str, str]] = {}
        self._news = threading.Condition()
        self._is_wanted = True
        self._thread = threading.Thread(target=self._run, name="children", daemon=True)

    def of(self, deployment: str) -> dict[str, str]:
        """StatefulSets that are not being deleted -> revision."""
        return self._groups.get(deployment, {})

    def wait(self, is_so: Callable[[], bool]) -> float:
        """When it was so."""
        with self._news:
            if not self._news.wait_for(is_so, CHANGE_LIMIT_S):
                raise RuntimeError(f"no child changed within {CHANGE_LIMIT_S:.0f} s")
        return time.monotonic()

    def __enter__(self) -> Self:
        listed = self._http.get(_GROUPS).json()
        for item in listed["items"]:
            self._see("ADDED", item)
        self._since = listed["metadata"]["resourceVersion"]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_wanted = False  # it ends with the next event, or with the program

    def _run(self) -> None:
        watch = f"{_GROUPS}&watch=1&resourceVersion={self._since}&timeoutSeconds=3600"
        with contextlib.suppress(httpx2.HTTPError), self._http.stream("GET", watch, timeout=None) as answer:
            for line in answer.iter_lines():
                event = json.loads(line)
                with self._news:
                    self._see(event["type"], event["object"])
                    self._news.notify_all()
                if not self._is_wanted:
                    return

    def _see(self, what: str, item: dict[str, Any]) -> None:
        labels = item["metadata"]["labels"]
        groups = dict(self._groups.get(labels[LABEL_DEPLOYMENT], {}))
        if what == "DELETED" or "deletionTimestamp" in item["metadata"]:
            groups.pop(item["metadata"]["name"], None)
        else:
            groups[item["metadata"]["name"]] = labels[LABEL_REVISION]
        self._groups[labels[LABEL_DEPLOYMENT]] = groups


def await_complete(http: httpx2.Client, path: str) -> None:
    """Until a deployment rests, so that each change finds all the others idle."""
    deadline = time.monotonic() + 10 * CHANGE_LIMIT_S
    while True:
        found = http.get(path).json()
        status = found.get("status") or {}
        reasons = {each["type"]: each["reason"] for each in status.get("conditions", ())}
        is_current = status.get("observedGeneration") == found["metadata"]["generation"]
        if is_current and reasons.get("Progressing") == "RolloutComplete":
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} is not complete: {json.dumps(status)}")
        time.sleep(0.1)


def ready_replicas(plane: ControlPlane) -> int:
    """Pods that run, cheaply: the deployments' own lists would be megabytes each time."""
    listed = plane.api.get(_GROUPS)["items"]
    return sum((item.get("status") or {}).get("readyReplicas", 0) for item in listed)


def versions(plane: ControlPlane) -> dict[str, str]:
    """Resource versions of everything that the operator writes, by uid."""
    paths = [f"{path.format(f'namespaces/{NAMESPACE}')}?{_OURS_ONLY}" for path in _CHILDREN]
    paths += [DEPLOYMENTS, f"{OURS}/acceleratorpools", "/apis/events.k8s.io/v1/events"]
    items = (item for path in paths for item in plane.api.get(path)["items"])
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items}


def count_changes(before: dict[str, str], after: dict[str, str]) -> int:
    """Objects that were made, changed or deleted in between."""
    return len(set(before.items()) ^ set(after.items()))


def await_idle(operator: OperatorProcess) -> None:
    """Until no reconcile has ended for two seconds and none waits."""
    last, since = -1.0, time.monotonic()
    while time.monotonic() - since < 2.0:
        done = sum(read_metrics(operator, "hanmaru_operator_reconciles_total").values())
        waiting = sum(read_metrics(operator, "hanmaru_operator_queue_depth").values())
        if done != last or waiting:
            last, since = done, time.monotonic()
        time.sleep(0.25)


def writes(operator: OperatorProcess) -> int:
    """Requests that write objects, as the operator counts them; its lease apart."""
    counted = read_metrics(operator, "hanmaru_operator_api_requests_total")
    return round(sum(value for labels, value in counted.items() if any(f'verb="{verb}"' in labels for verb in _WRITES)))


def read_metrics(operator: OperatorProcess, name: str) -> dict[str, float]:
    """A metric's values by its labels as they are written."""
    found = {}
    for line in operator.get("/metrics")[1].splitlines():
        if line.startswith(name) and line[len(name)] in "{ ":
            labels, _, value = line[len(name) :].rpartition(" ")
            found[labels] = float(value)
    return found


def cpu_s(operator: OperatorProcess) -> float:
    """CPU seconds that the process has used."""
    fields = Path(f"/proc/{operator.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_mb(operator: OperatorProcess, field: str) -> float:
    """`VmRSS`, or `VmHWM` for the most it ever was."""
    lines = Path(f"/proc/{operator.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
