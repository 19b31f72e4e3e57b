"""Namespaces of models: would Pod Security refuse a pool's pods, can workers find names, does anybody enforce policies.

Pure. What the operator renders passes "restricted"; only pod templates of pools and deployments can ask for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.names import LABEL_MANAGED_BY, MANAGED_BY
from pydantic import ValidationError

from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.objects import Labels, NetworkPolicy, Ours
from hanmaru_cli.doctor.world import World

ENFORCE = "pod-security.kubernetes.io/enforce"
ENFORCERS = {
    "calico-node": "Calico",
    "cilium": "Cilium",
    "antrea-agent": "Antrea",
    "kube-router": "kube-router",
    "ovnkube-node": "OVN-Kubernetes",
    "ovs-cni": "OVN-Kubernetes",
    "weave-net": "Weave Net",
    "azure-npm": "Azure's policy manager",
}
"""DaemonSets whose network enforces NetworkPolicies. Managed clusters may hide theirs."""
_DNS_PORT = 53
_HOST = ("hostNetwork", "hostPID", "hostIPC")


def check_namespaces(world: World) -> list[Finding]:
    """Where models are deployed."""
    found = world.namespaces.cannot_look("security", "namespaces' Pod Security levels")
    found += world.policies.cannot_look("network", "NetworkPolicies")
    places = sorted({one.metadata.namespace for one in world.deployments})
    levels = {one.metadata.name: one.metadata.labels.get(ENFORCE, "") for one in world.namespaces}
    templates = _templates(world)
    for place in places:
        found += _level(place, levels.get(place, ""), templates.get(place, {}))
    if not world.policies.unseen:
        found += [line for place in places for line in _names(place, world)]
    return found + _enforcement(world)


def _templates(world: World) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Pools' pod templates by namespace that uses them, and whose they are."""
    pools = {pool.metadata.name: pool.spec.get("podTemplate") or {} for pool in world.pools}
    used: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in world.deployments:
        for name in _pool_names(one):
            if template := pools.get(name):
                used.setdefault(one.metadata.namespace, {})[f"ap/{name}"] = template
    return used


def _pool_names(one: Ours) -> Sequence[str]:
    try:
        return [entry.name for entry in ModelDeploymentSpec.model_validate(one.spec).pools]
    except ValidationError:
        return ()


def _level(place: str, level: str, templates: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
    if level not in ("restricted", "baseline"):
        return
    for whose, template in templates.items():
        if too_much := [*_beyond(template, level)]:
            seen = f"it enforces {level}, and the podTemplate of {whose} asks for {some(too_much)}"
            to_do = "use another namespace for this pool's models, or take it out of the template"
            yield Finding(Mark.FAIL, "security", f"namespace/{place}", seen, "what the level allows", to_do)


def _beyond(template: Mapping[str, Any], level: str) -> Iterable[str]:
    """What a level refuses of a template, as far as devices' templates use it."""
    spec = template.get("spec") or {}
    yield from (name for name in _HOST if spec.get(name))
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield f"a host path ({volume['hostPath'].get('path', '')})"
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        security = container.get("securityContext") or {}
        if security.get("privileged"):
            yield "a privileged container"
        added = (security.get("capabilities") or {}).get("add") or ()
        allowed = {"NET_BIND_SERVICE"}
        if added and (level == "restricted" or "IPC_LOCK" in added or "SYS_ADMIN" in added) and set(added) - allowed:
            yield f"the capabilities {', '.join(sorted(set(added) - allowed))}"
        if level == "restricted" and security.get("runAsNonRoot") is False:
            yield "a container that runs as root"


# --- ways out ------------------------------------------------------------------------------------------------------


def _names(place: str, world: World) -> Iterable[Finding]:
    """Policies that keep workers from DNS: then neither Redis nor the other ranks are found."""
    workers = [pod for pod in world.pods if pod.metadata.namespace == place]
    labels = [pod.metadata.labels for pod in workers if pod.metadata.labels.get(LABEL_MANAGED_BY) == MANAGED_BY]
    worker = labels[0] if labels else {LABEL_MANAGED_BY: MANAGED_BY}
    holding = [
        one
        for one in world.policies
        if one.metadata.namespace == place and "Egress" in one.spec.policy_types and _selects(one, worker)
    ]
    if holding and not any(_allows_dns(one) for one in holding):
        listed = some(one.metadata.name for one in holding)
        seen = f"NetworkPolicies close the ways out of workers ({listed}) and none opens DNS"
        to_do = "allow egress to port 53 (UDP, TCP), to Redis and, where models are downloaded, to the hub"
        yield Finding(Mark.FAIL, "network", f"namespace/{place}", seen, "DNS and Redis reachable", to_do)


def _selects(policy: NetworkPolicy, labels: Labels) -> bool:
    """Whether the policy selects such a pod. `matchExpressions` are taken to match: better one line too many."""
    wanted = policy.spec.pod_selector.get("matchLabels") or {}
    return all(labels.get(name) == value for name, value in wanted.items())


def _allows_dns(policy: NetworkPolicy) -> bool:
    return any(
        not rule.get("ports") or any(_holds(port, _DNS_PORT) for port in rule["ports"]) for rule in policy.spec.egress
    )


def _holds(port: Mapping[str, Any], number: int) -> bool:
    first = port.get("port")
    if first is None:
        return True
    if not isinstance(first, int):
        return "dns" in str(first)
    return first <= number <= int(port.get("endPort", first))


def _enforcement(world: World) -> list[Finding]:
    """Nobody can ask the API whether policies are enforced; a well-known network is a good sign."""
    if world.daemons.unseen:
        return world.daemons.cannot_look("network", "the network's DaemonSets")
    seen = {ENFORCERS[one.metadata.name] for one in world.daemons if one.metadata.name in ENFORCERS}
    if seen:
        return [ok("network", f"{some(seen)} runs, which enforces NetworkPolicies (not tried)")]
    known = "no network known to do so is seen"
    to_do = "ask who runs the network; without it passwords and keys alone guard Redis' and the engines' ports"
    return [Finding(Mark.NOTE, "network", "", f"whether NetworkPolicies are enforced is unknown: {known}", to_do=to_do)]
