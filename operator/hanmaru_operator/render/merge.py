"""Pod templates of pools and deployments, merged over ours. Pure; `pod` is the only caller.

Opaque objects come in, checked by nobody before. Rules: objects merge key by key, and null removes a key; lists of
named things merge by the name (`_KEYS`), where volumes and variables are replaced whole; tolerations and `envFrom` are
appended; everything else is replaced. An author of deployments is trusted with less than whoever makes pools, see
`NOT_FOR_AUTHORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanmaru_contracts.crd.kinds import GROUP
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ENGINE_CONTAINER

from hanmaru_operator.types import Manifest

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "claims": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
}
"""What names the members of a list."""
_WHOLE = frozenset({"volumes", "env"})
"""Of an old and a new source of one volume or variable, one must go."""
_APPENDED = frozenset({"tolerations", "envFrom"})

_SHAPES: tuple[tuple[str, type], ...] = (
    ("metadata", dict), ("metadata.labels", dict), ("metadata.annotations", dict), ("spec", dict),
    ("spec.containers", list), ("spec.initContainers", list), ("spec.volumes", list), ("spec.tolerations", list),
    ("spec.imagePullSecrets", list), ("spec.schedulingGates", list), ("spec.affinity", dict),
)  # fmt: skip
_CONTAINER_SHAPES: tuple[tuple[str, type], ...] = (
    ("env", list), ("volumeMounts", list), ("ports", list), ("resources", dict), ("securityContext", dict),
)  # fmt: skip
"""What we rely on; the API server checks the rest."""

NOT_FOR_AUTHORS = frozenset({
    # Another identity than the replica's own.
    "serviceAccountName", "serviceAccount", "automountServiceAccountToken",
    # Where and when it runs is the pool's and the operator's to say; `nodeSelector` may narrow it.
    "nodeName", "schedulingGates", "schedulerName", "priorityClassName", "priority", "restartPolicy",
    "terminationGracePeriodSeconds",
    # More than a container.
    "hostNetwork", "hostPID", "hostIPC", "hostUsers", "securityContext",
})  # fmt: skip
"""Fields of a pod's spec that only a pool's template may set; likewise our own marks, `affinity.nodeAffinity`,
containers' `securityContext`, paths and ports of the host, and the engine's image, command and arguments."""
_MARKS_NOT_FOR_AUTHORS = (f"{GROUP}/", "container.apparmor.security.beta.kubernetes.io/")
"""Of labels and annotations. By ours a pod could claim a node past everybody in line; the other is a
`securityContext` by another name."""
_ENGINES_OWN = frozenset({"image", "command", "args"})


def merge(base: Any, over: Any, key: str = "") -> Any:
    """`over` laid over `base` by the rules above; neither is changed. `key` is the field both stand in."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        merged = {**base}
        for name, value in over.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = merge(merged.get(name, _nothing_like(value)), value, name)
        return merged
    if isinstance(base, list) and isinstance(over, list):
        if key in _APPENDED:
            return [*base, *(item for item in over if item not in base)]
        if key in _KEYS:
            return _merge_named(base, over, _KEYS[key], is_whole=key in _WHOLE)
    return over


def _merge_named(base: list[Any], over: list[Any], name: str, *, is_whole: bool) -> list[Any]:
    """Members of the same name merged in place, new ones behind them in their own order."""
    merged = {item[name]: item for item in base}
    for item in over:
        if not isinstance(item, Mapping) or not isinstance(item.get(name), (str, int)):
            raise _wrong(f"a member of a list in podTemplate has no {name!r}: {str(item)[:80]}")
        merged[item[name]] = item if is_whole else merge(merged.get(item[name], {}), item)
    return list(merged.values())


def _nothing_like(value: Any) -> Any:
    """What a new value is merged over, so that its nulls go and its lists are checked."""
    if isinstance(value, Mapping):
        return {}
    return [] if isinstance(value, list) else None


def merge_template(base: Manifest, over: Manifest) -> Manifest:
    """A pod template (`metadata` and `spec`) merged. Raises HanmaruError (CONFIGURATION) when `over` is broken."""
    for path, kind in _SHAPES:
        _check(over, path, kind)
    for part in ("containers", "initContainers"):
        for container in (over.get("spec") or {}).get(part) or ():
            for path, kind in _CONTAINER_SHAPES:
                _check(container, path, kind, f"spec.{part}[]")
    merged: Manifest = merge(base, {name: over[name] for name in ("metadata", "spec") if over.get(name)})
    return merged


def _check(value: Any, path: str, kind: type, where: str = "") -> None:
    """Absent or null will do."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            return
    if not isinstance(value, kind):
        said = ".".join(part for part in ("podTemplate", where, path) if part)
        raise _wrong(f"{said} is a {type(value).__name__}, not {'a list' if kind is list else 'an object'}")


def for_author(template: Manifest) -> tuple[Manifest, tuple[str, ...]]:
    """A deployment's template without what its author may not set, and the paths that were left out."""
    refused: list[str] = []
    kept = {**template}
    if isinstance(kept.get("metadata"), Mapping):
        kept["metadata"] = {
            name: _marks_for_author(value, f"metadata.{name}", refused) if name in ("labels", "annotations") else value
            for name, value in kept["metadata"].items()
        }
    if isinstance(kept.get("spec"), Mapping):
        kept["spec"] = _spec_for_author(kept["spec"], refused)
    return kept, tuple(refused)


def _marks_for_author(marks: Any, path: str, refused: list[str]) -> Any:
    if not isinstance(marks, Mapping):
        return marks
    forbidden = {name for name in marks if name.startswith(_MARKS_NOT_FOR_AUTHORS)}
    refused += [f"{path}[{name}]" for name in marks if name in forbidden]
    return {name: value for name, value in marks.items() if name not in forbidden}


def _spec_for_author(spec: Mapping[str, Any], refused: list[str]) -> Manifest:
    refused += [f"spec.{name}" for name in spec if name in NOT_FOR_AUTHORS]
    kept = {name: value for name, value in spec.items() if name not in NOT_FOR_AUTHORS}
    for part in ("containers", "initContainers", "ephemeralContainers"):
        if isinstance(kept.get(part), list):
            kept[part] = [_container_for_author(item, f"spec.{part}", refused) for item in kept[part]]
    if isinstance(kept.get("affinity"), Mapping) and "nodeAffinity" in kept["affinity"]:
        refused.append("spec.affinity.nodeAffinity")
        kept["affinity"] = {name: value for name, value in kept["affinity"].items() if name != "nodeAffinity"}
    if isinstance(kept.get("volumes"), list):
        on_host = [item for item in kept["volumes"] if isinstance(item, Mapping) and "hostPath" in item]
        refused += [f"spec.volumes[{item.get('name')}].hostPath" for item in on_host]
        kept["volumes"] = [item for item in kept["volumes"] if item not in on_host]
    return kept


def _container_for_author(container: Any, path: str, refused: list[str]) -> Any:
    if not isinstance(container, Mapping):
        return container
    forbidden = {"securityContext"} | (_ENGINES_OWN if container.get("name") == ENGINE_CONTAINER else frozenset())
    where = f"{path}[{container.get('name')}]"
    refused += [f"{where}.{name}" for name in container if name in forbidden]
    kept = {name: value for name, value in container.items() if name not in forbidden}
    if isinstance(kept.get("ports"), list):
        on_host = [port for port in kept["ports"] if isinstance(port, Mapping) and "hostPort" in port]
        refused += [f"{where}.ports[{port.get('containerPort')}].hostPort" for port in on_host]
        kept["ports"] = [port for port in kept["ports"] if port not in on_host]
    return kept


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
