"""Pods of releases and replicas: those that wait, and why, that fail, and that were never made. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hanmaru_contracts import names

from hanmaru_cli.doctor.finding import Finding, Mark, ok
from hanmaru_cli.doctor.objects import ContainerStatus, Event, Pod, State
from hanmaru_cli.doctor.platform_checks import LABEL_PART_OF
from hanmaru_cli.doctor.world import World

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_POD_SECURITY = re.compile(r"violates PodSecurity \"?(?P<level>[^\"]+)\"?:?(?P<what>.*)", re.DOTALL)
_MESSAGE_CHARS = 300
MANY_RESTARTS = 2
"""Between two tries a container that ends again and again looks like one that starts."""


def check_pods(world: World) -> list[Finding]:
    """Every pod that is not well, and what controllers could not make."""
    if world.pods.unseen:
        return world.pods.cannot_look("pods", "pods")
    found = [line for pod in world.pods for line in _pod(pod)]
    found += _never_made(world)
    if not found and world.pods.items:
        return [ok("pods", f"{len(world.pods.items)} pods, and none waits or fails")]
    return found


def _pod(pod: Pod) -> Iterable[Finding]:
    subject = f"pod/{pod.where}"
    if pod.metadata.deletion_timestamp or pod.status.phase == "Succeeded":
        return
    gates = [gate.name for gate in pod.spec.scheduling_gates]
    if gates == [names.GATE_GROUP]:
        seen = "waits until its whole group fits into the pool"
        yield Finding(Mark.WARN, "pods", subject, seen, to_do=f"see the line of {_deployment(pod)}")
    elif gates:
        seen = f"held by scheduling gates: {', '.join(gates)}"
        yield Finding(Mark.WARN, "pods", subject, seen, to_do="ask whose gate it is")
    elif (scheduled := pod.says("PodScheduled")).status == "False":
        to_do = "free or add what is missing; a volume of another zone or a taint may be it too"
        yield Finding(Mark.FAIL, "pods", subject, f"not scheduled: {_short(scheduled.message)}", to_do=to_do)
    if pod.status.phase == "Failed":
        why = pod.status.message or pod.status.reason or "see its log"
        yield Finding(Mark.FAIL, "pods", subject, f"failed: {_short(why)}", to_do=_logs(pod))
        return
    lines = [_container(pod, one) for one in (*pod.status.init_container_statuses, *pod.status.container_statuses)]
    yield from filter(None, lines)
    # A worker may load for an hour, which its deployment's line tells; the release's own parts start in a minute.
    is_release = LABEL_PART_OF in pod.metadata.labels
    if is_release and pod.status.phase == "Running" and pod.says("Ready").status == "False" and not any(lines):
        yield Finding(Mark.WARN, "pods", subject, "runs, and is not ready", to_do=f"after a minute: {_logs(pod)}")


def _container(pod: Pod, container: ContainerStatus) -> Finding | None:
    subject = f"pod/{pod.where}"
    waiting, last = container.state.waiting, container.last_state.terminated
    if waiting is not None and waiting.reason in _IMAGE:
        to_do = (
            "check the name, the tag and the pull secret (image.pullSecrets); unpublished images must be pushed first"
        )
        seen = f"{waiting.reason}: {container.image}: {_short(waiting.message)}"
        return Finding(Mark.FAIL, "images", subject, seen, "an image that the node can pull", to_do)
    if waiting is not None and waiting.reason in _CONFIG:
        seen = f"{container.name}: {waiting.reason}: {_short(waiting.message)}"
        return Finding(Mark.FAIL, "pods", subject, seen, to_do=f"`kubectl describe {subject}`; is a Secret missing?")
    if last is not None and last.reason == "OOMKilled":
        seen = f"{container.name} was killed for memory, {container.restart_count} restarts"
        to_do = "raise its memory limit; for an engine on CPUs devices.memory, which /dev/shm counts towards"
        return Finding(Mark.FAIL, "pods", subject, seen, to_do=to_do)
    if waiting is not None and waiting.reason == "CrashLoopBackOff":
        return Finding(
            Mark.FAIL, "pods", subject, f"{container.name} ends again and again: {_ended(last)}",
            to_do=_logs(pod, container.name),
        )  # fmt: skip
    if last is not None and container.restart_count >= MANY_RESTARTS and not container.ready:
        seen = f"{container.name} has ended {container.restart_count} times, last with {_ended(last)}"
        return Finding(Mark.WARN, "pods", subject, seen, to_do=_logs(pod, container.name))
    return None


def _ended(last: State | None) -> str:
    if last is None:
        return "no status"
    return f"status {last.exit_code} ({last.reason or 'no reason'})"


def _never_made(world: World) -> list[Finding]:
    """The newest reason a controller gave for a pod that is still missing."""
    short = {
        (one.metadata.namespace, one.metadata.name)
        for one in (*world.groups, *world.workloads)
        if one.status.replicas < one.spec.replicas
    }
    newest: dict[tuple[str, str], Event] = {}
    for event in world.events:
        owner = (event.metadata.namespace, event.involved_object.name)
        # A Deployment's pods are made by its ReplicaSet, whose name begins with the Deployment's.
        names_it = owner in short or any(owner[0] == place and owner[1].startswith(f"{name}-") for place, name in short)
        if event.reason == "FailedCreate" and names_it and _at(event) >= _at(newest.get(owner)):
            newest[owner] = event
    return [_refused(event) for event in newest.values()]


def _at(event: Event | None) -> str:
    return "" if event is None else event.last_timestamp or event.event_time or ""


def _refused(event: Event) -> Finding:
    subject = f"{event.involved_object.kind.lower()}/{event.involved_object.name} -n {event.metadata.namespace}"
    found = _POD_SECURITY.search(event.message)
    if found:
        seen = f'Pod Security "{found["level"]}" refuses its pods: {_short(found["what"].strip())}'
        to_do = "take what is named out of the podTemplate, or give the namespace another level"
        return Finding(Mark.FAIL, "security", subject, seen, "pods that the namespace's level allows", to_do)
    to_do = "raise the quota, or ask whose admission policy it is"
    return Finding(Mark.FAIL, "pods", subject, f"its pods cannot be made: {_short(event.message)}", to_do=to_do)


def _deployment(pod: Pod) -> str:
    return f"md/{pod.metadata.labels.get(names.LABEL_DEPLOYMENT, '?')} -n {pod.metadata.namespace}"


def _logs(pod: Pod, container: str = "") -> str:
    part = f" -c {container} --previous" if container else ""
    return f"`kubectl logs {pod.where}{part}`"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _MESSAGE_CHARS else flat[: _MESSAGE_CHARS - 1] + "…"
