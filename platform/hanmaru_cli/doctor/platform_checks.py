"""The cluster itself and the release on it: API server, kinds, the chart's parts, who leads. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from hanmaru_contracts.crd.kinds import GROUP, KINDS, VERSION, Kind
from hanmaru_contracts.names import LABEL_COMPONENT

from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.objects import Definition, Lease, Workload
from hanmaru_cli.doctor.world import World

LEAST_KUBERNETES = (1, 32)
"""As the chart says: the first in which everything used is stable, the pods' index label last."""
MAX_SKEW_S = 5.0
"""Tokens of login programs and signed registrations live for a minute or more; the server tells whole seconds."""
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_VERSION = "app.kubernetes.io/version"
LABEL_INSTANCE = "app.kubernetes.io/instance"
PART_OF = "hanmaru"
"""On every object and pod of a release, whatever its name."""
_INSTALL_CRDS = "helm upgrade --install hanmaru-crds charts/hanmaru-crds"
_NEEDED = ("operator", "gateway")
"""Every release has them. Redis may be an external one, the Ray head KubeRay's, the collector somebody else's."""


def check_server(world: World) -> list[Finding]:
    """The API server's version and clock."""
    found = []
    numbers = version_numbers(world.version)
    wanted = ".".join(map(str, LEAST_KUBERNETES))
    if numbers is None:
        found.append(Finding(Mark.UNSEEN, "kubernetes", "", f"{world.server} does not tell its version", wanted))
    elif numbers < LEAST_KUBERNETES:
        seen = f"Kubernetes {world.version} at {world.server}"
        found.append(Finding(Mark.FAIL, "kubernetes", "", seen, f"{wanted} or newer", "upgrade the cluster"))
    else:
        found.append(ok("kubernetes", f"Kubernetes {world.version} at {world.server}"))
    if world.server_time is not None:
        skew_s = world.local_time - world.server_time
        seen = f"this machine's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the API server's"
        # An answer's Date has whole seconds and was written a moment ago.
        if abs(skew_s) > MAX_SKEW_S:
            expected = f"{MAX_SKEW_S:g} s at most"
            found.append(Finding(Mark.WARN, "clock", "", seen, expected, "let NTP set the clocks here and there"))
        else:
            found.append(ok("clock", f"within {MAX_SKEW_S:g} s of the API server's"))
    return found


def check_kinds(world: World) -> list[Finding]:
    """Our kinds: served, and with the fields that this version knows."""
    served = {
        "acceleratorpools": world.pools.is_served,
        "modeldeployments": world.deployments.is_served,
        "tenants": world.tenants.is_served,
    }
    missing = [plural for plural, is_served in served.items() if not is_served]
    if missing:
        seen = f"the API server does not know {some(missing)} of {GROUP}/{VERSION}"
        return [Finding(Mark.FAIL, "kinds", "", seen, "the chart hanmaru-crds", f"run `{_INSTALL_CRDS}`")]
    if world.definitions.unseen:
        return [
            ok("kinds", f"{', '.join(served)} are served"),
            *world.definitions.cannot_look("kinds", "their definitions' fields"),
        ]
    by_name = {one.metadata.name: one for one in world.definitions}
    found = [line for kind in KINDS for line in _kind(kind, by_name.get(f"{kind.plural}.{GROUP}"))]
    return found or [ok("kinds", f"{', '.join(served)} are served, with the fields of this version")]


def _kind(kind: Kind, definition: Definition | None) -> Iterable[Finding]:
    if definition is None:
        return
    subject = f"crd/{definition.metadata.name}"
    established = next((one for one in definition.status.conditions if one.type == "Established"), None)
    if established is not None and established.status != "True":
        yield Finding(
            Mark.FAIL, "kinds", subject, f"not established: {established.message}", to_do=f"run `{_INSTALL_CRDS}`"
        )
    version = next((one for one in definition.spec.versions if one.name == VERSION), None)
    if version is None:
        seen = f"it has no version {VERSION}"
        yield Finding(Mark.FAIL, "kinds", subject, seen, f"version {VERSION}", f"run `{_INSTALL_CRDS}`")
        return
    there = dict(_schema_fields(version.schema.get("openAPIV3Schema", {}).get("properties", {}), ("spec", "status")))
    wanted = {**_model_fields(kind.spec.model_json_schema(), "spec")}
    wanted |= _model_fields(kind.status.model_json_schema(), "status")
    if lacking := wanted.keys() - there.keys():
        seen = f"it is older than this hanmaru: it lacks {some(lacking)}"
        yield Finding(Mark.FAIL, "kinds", subject, seen, "every field of this version", f"run `{_INSTALL_CRDS}`")
    elif more := there.keys() - wanted.keys():
        seen = f"it is newer than this hanmaru: it also has {some(more)}"
        yield Finding(Mark.WARN, "kinds", subject, seen, "the same version", "upgrade this hanmaru and the release")


def _schema_fields(properties: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> Iterable[tuple[str, None]]:
    """Paths of all fields below `names`, as the API server has them."""
    for name in names:
        schema = properties.get(name, {})
        schema = schema.get("items", schema)
        path = f"{prefix}{name}"
        yield path, None
        inner = schema.get("properties", {})
        yield from _schema_fields(inner, inner, f"{path}.")


def _model_fields(schema: Mapping[str, Any], path: str) -> dict[str, None]:
    """Paths of all fields of one of our models, in the same words."""
    defs: Mapping[str, Any] = schema.get("$defs", {})

    def walk(part: Mapping[str, Any], path: str) -> Iterable[tuple[str, None]]:
        yield path, None
        for name, field in _resolved(part, defs).get("properties", {}).items():
            yield from walk(field, f"{path}.{name}")

    return dict(walk(schema, path))


def _resolved(part: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    while True:
        if "$ref" in part:
            part = defs[part["$ref"].removeprefix("#/$defs/")]
        elif "anyOf" in part:
            part = next(branch for branch in part["anyOf"] if branch != {"type": "null"})
        elif "items" in part:
            part = part["items"]
        else:
            return part


def version_numbers(version: str) -> tuple[int, int] | None:
    """(major, minor) of a Kubernetes version; None for something else."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


# --- the release ---------------------------------------------------------------------------------------------------


def check_release(world: World) -> list[Finding]:
    """The chart's parts: there, ready, of one version."""
    if world.workloads.unseen:
        return world.workloads.cannot_look("release", "the release's Deployments and StatefulSets")
    parts = {_component(one): one for one in world.workloads}
    if not parts and world.narrowed_to:
        seen = f"no part of the chart hanmaru is in namespace {world.narrowed_to}"
        return [Finding(Mark.UNSEEN, "release", "", seen, to_do="give the release's namespace with -n")]
    if not parts:
        to_do = "run `helm upgrade --install hanmaru charts/hanmaru -n hanmaru --create-namespace`"
        return [Finding(Mark.FAIL, "release", "", "no part of the chart hanmaru is here", "a release", to_do)]
    found = [_part(one) for one in world.workloads]
    pods = {pod.metadata.labels.get(LABEL_COMPONENT) for pod in world.pods}
    found += [
        Finding(Mark.FAIL, "release", "", f"there is no {name}", f"a Deployment of the component {name}", _LOOK)
        for name in _NEEDED
        if name not in parts and name not in pods  # KubeRay makes the gateway's pods without a Deployment
    ]
    releases = {(one.metadata.namespace, one.metadata.labels.get(LABEL_INSTANCE, "")) for one in world.workloads}
    if len(releases) > 1:
        seen = f"{len(releases)} releases: {some(f'{name} in {place}' for place, name in releases)}"
        to_do = "keep one, or see that only one operator looks after the kinds"
        found.append(Finding(Mark.WARN, "release", "", seen, "one a cluster", to_do))
    versions = {one.metadata.labels[LABEL_VERSION] for one in world.workloads if LABEL_VERSION in one.metadata.labels}
    if others := versions - {world.cli_version}:
        seen = f"the release is {some(others)} and this hanmaru {world.cli_version}"
        found.append(Finding(Mark.WARN, "release", "", seen, "the same", "use the hanmaru of the release's version"))
    return found


_LOOK = "look at `helm status` and the values the release was made with"


def _component(one: Workload) -> str:
    return one.metadata.labels.get(LABEL_COMPONENT, "")


def _part(one: Workload) -> Finding:
    subject = f"{one.kind.lower()}/{one.where}"
    ready, wanted = one.status.ready_replicas, one.spec.replicas
    seen = f"{ready} of {wanted} pods are ready"
    if wanted == 0:
        mark = Mark.FAIL if _component(one) in _NEEDED else Mark.WARN
        return Finding(mark, "release", subject, "it is scaled to 0", "1 or more", f"kubectl scale {subject}")
    if ready >= wanted:
        return ok("release", seen, subject)
    to_do = f"`kubectl describe {subject}` and its pods' lines below"
    return Finding(Mark.WARN if ready else Mark.FAIL, "release", subject, seen, f"{wanted}", to_do)


def check_leader(world: World) -> list[Finding]:
    """Some operator holds the lease, and renews it."""
    operators = [one for one in world.workloads if _component(one) == "operator"]
    if not operators:
        return []
    if world.leases.unseen:
        return world.leases.cannot_look("leader", "the operator's Lease")
    found = []
    for operator in operators:
        names = {operator.metadata.name, "hanmaru-operator"}
        lease = next(
            (
                one
                for one in world.leases
                if one.metadata.namespace == operator.metadata.namespace and one.metadata.name in names
            ),
            None,
        )
        found.append(_leader(lease, operator, world.now))
    return found


def _leader(lease: Lease | None, operator: Workload, now: float) -> Finding:
    subject = f"deployment/{operator.where}"
    logs = f"look at its log: `kubectl logs deployment/{operator.where}`"
    if lease is None or not lease.spec.holder_identity:
        return Finding(Mark.FAIL, "leader", subject, "no operator leads", "a holder of its Lease", logs)
    try:
        age_s = now - datetime.fromisoformat(lease.spec.renew_time).timestamp()
    except ValueError:
        return Finding(Mark.FAIL, "leader", subject, "its Lease was never renewed", to_do=logs)
    limit_s = max(lease.spec.lease_duration_seconds, 1)
    seen = f"{lease.spec.holder_identity} leads"
    # A second for the server's clock, which tells whole ones, and one for the way.
    if age_s > limit_s + 2:
        seen = f"{lease.spec.holder_identity} led, and was last seen {age_s:.0f} s ago"
        return Finding(Mark.FAIL, "leader", subject, seen, f"within {limit_s} s", logs)
    return ok("leader", seen, subject)
