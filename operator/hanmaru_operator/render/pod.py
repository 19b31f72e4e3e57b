"""The pod template of a group: what each pod of every replica of one revision looks like. Pure.

`bundle` calls `pod_template` once for a revision and keeps the result; `group` puts a replica's name in the place of
`REPLICA`, and the pool's present placement around it. Ours first, then the pool's template, then the deployment's, then
what nobody may change once more: the scheduling gate, labels, service account, identity and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import Toleration
from hanmaru_contracts.names import ENGINE_CONTAINER, RENDEZVOUS_PORT
from hanmaru_contracts.wire.engine_spec import EngineSpec

from hanmaru_operator.render.engines import COMMAND, ENGINES
from hanmaru_operator.render.identity import Owner, deployment_labels, revision_name
from hanmaru_operator.render.merge import for_author, merge, merge_template
from hanmaru_operator.render.revision import Written
from hanmaru_operator.render.security import CONTAINER_SECURITY, POD_SECURITY
from hanmaru_operator.render.settings import RedisFile, RenderSettings, TierRedis
from hanmaru_operator.render.source import SourceParts, download_container, download_parts, source_parts
from hanmaru_operator.types import Manifest, PoolName, Revision

REPLICA = "__HANMARU_REPLICA__"
"""Stands in a template where the replica's name comes."""
SPEC_MOUNT = "/hanmaru/spec"
SPEC_KEY = "engine-spec.json"
SECRETS_MOUNT = "/hanmaru/secrets"
REPLICA_KEY = "replica-key"
TIER_KEY = "tier-key"
TIER_PREFIX = "tier-"
"""Of the shared cache's files in a replica's Secret."""
_REDIS_VARIABLES = {
    RedisFile.PASSWORD: names.ENV_REDIS_PASSWORD_FILE,
    RedisFile.CA: names.ENV_REDIS_CA_FILE,
    RedisFile.CERT: names.ENV_REDIS_CERT_FILE,
    RedisFile.KEY: names.ENV_REDIS_KEY_FILE,
    RedisFile.SENTINEL_PASSWORD: names.ENV_REDIS_SENTINEL_PASSWORD_FILE,
}
HOME = "/hanmaru/home"
GRACE_BEYOND_DRAIN_S = 15
_PRIVATE_VOLUMES = frozenset({"engine-spec", "replica-secrets"})
_PROBE_PERIOD_S = 10
_WRITABLE = [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 # the pod's own


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What the pods of one revision are made of."""

    owner: Owner
    written: Written
    spec: EngineSpec
    size: int
    devices_per_pod: int
    image: str
    revision: Revision
    commit: str
    """Of the checkpoint, where it is downloaded."""

    @property
    def pool(self) -> PoolName:
        """The pool the group is for."""
        return PoolName(self.written.entry.name)


def pod_template(plan: PodPlan, settings: RenderSettings) -> Manifest:
    """The template, `REPLICA` for the replica's name. Raises HanmaruError (CONFIGURATION) when a user's is broken."""
    ours = _our_template(plan, settings)
    merged = merge_template(ours, plan.written.pool.pod_template)
    merged = merge_template(merged, for_author(plan.written.serving.pod_template)[0])
    return _ours_again(merged, ours, _identity(plan, settings))


def template_labels(owner: Owner, pool: PoolName, revision: Revision) -> dict[str, str]:
    """Labels of a replica's pods and of its other objects, the replica's name aside."""
    labels = {names.LABEL_POOL: pool, names.LABEL_REVISION: revision, names.LABEL_REPLICA: REPLICA}
    return deployment_labels(owner, names.COMPONENT_WORKER) | labels


def _our_template(plan: PodPlan, settings: RenderSettings) -> Manifest:
    source = plan.written.source
    model = source_parts(source) if source.hugging_face is None else download_parts(source)
    spec: Manifest = {
        "serviceAccountName": REPLICA,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "schedulingGates": [{"name": names.GATE_GROUP}],
        "terminationGracePeriodSeconds": plan.written.deployment.lifecycle.drain_seconds + GRACE_BEYOND_DRAIN_S,
        "securityContext": POD_SECURITY,
        "tolerations": [_toleration(toleration) for toleration in plan.written.pool.nodes.tolerations],
        "containers": [_engine(plan, settings, model)],
        "volumes": [*model.volumes, *_volumes(plan)],
    }
    if source.hugging_face is not None:
        not_downloaded = ENGINES[plan.written.pool.engine.type].not_downloaded
        spec["initContainers"] = [
            _container(settings)
            | download_container(
                source.hugging_face,
                commit=plan.commit,
                image=plan.image,
                not_downloaded=not_downloaded,
                mounts=_WRITABLE,
            )
        ]
        spec["initContainers"][0]["env"].append({"name": "HOME", "value": HOME})
    if secrets := (*settings.image_pull_secrets, *model.pull_secrets):
        spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(secrets)]
    metadata = {
        "labels": template_labels(plan.owner, plan.pool, plan.revision),
        # For `kubectl logs`. Lifting a gate adds ours by JSON patch, which needs annotations to be there.
        "annotations": {"kubectl.kubernetes.io/default-container": names.ENGINE_CONTAINER},
    }
    return {"metadata": metadata, "spec": spec}


def _engine(plan: PodPlan, settings: RenderSettings, model: SourceParts) -> Manifest:
    startup_s = plan.written.deployment.lifecycle.startup_timeout_seconds
    probe = {"httpGet": {"path": "/health", "port": "supervisor"}, "periodSeconds": _PROBE_PERIOD_S}
    return _container(settings) | {
        "name": ENGINE_CONTAINER,
        "image": plan.image,
        "command": [*COMMAND],
        "env": _environment(plan, settings),
        "ports": [
            {"name": "engine", "containerPort": plan.spec.http_port, "protocol": "TCP"},
            {"name": "supervisor", "containerPort": plan.spec.supervisor_port, "protocol": "TCP"},
        ],
        "resources": _resources(plan),
        "volumeMounts": [
            *model.mounts,
            {"name": "engine-spec", "mountPath": SPEC_MOUNT, "readOnly": True},
            {"name": "replica-secrets", "mountPath": SECRETS_MOUNT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            *_WRITABLE,
        ],
        # The supervisor answers `/health` from its first second and times the engine's start itself. A probe of
        # `/ready` here would restart loaded workers whenever Redis is away.
        "startupProbe": probe | {"timeoutSeconds": 5, "failureThreshold": max(3, -(-startup_s // _PROBE_PERIOD_S))},
        "livenessProbe": probe | {"timeoutSeconds": 10, "failureThreshold": 6},
        "readinessProbe": probe
        | {"httpGet": {"path": "/ready", "port": "supervisor"}, "periodSeconds": 2, "timeoutSeconds": 2},
    }


def _container(settings: RenderSettings) -> Manifest:
    """What every container of ours has."""
    policy = {"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}
    return {"securityContext": CONTAINER_SECURITY} | policy


def _environment(plan: PodPlan, settings: RenderSettings) -> list[Manifest]:
    pool = plan.written.pool.engine
    variables = dict(ENGINES[pool.type].group_variables) if plan.size > 1 else {}
    # torch asks who it runs as, and fails where no passwd entry has the number.
    variables |= {"HOME": HOME, "USER": "hanmaru", "XDG_CACHE_HOME": f"{HOME}/.cache"}
    variables |= {variable.name: variable.value for variable in pool.env}
    identity = _identity(plan, settings)
    taken = {variable["name"] for variable in identity}
    return identity + [{"name": name, "value": value} for name, value in variables.items() if name not in taken]


def _identity(plan: PodPlan, settings: RenderSettings) -> list[Manifest]:
    """Who the replica is and where its secrets are: nothing a template may change."""

    def host(rank: int) -> str:
        return f"{REPLICA}-{rank}.{REPLICA}.{plan.owner.namespace}.svc"

    told = {
        names.ENV_REPLICA_ID: REPLICA,
        names.ENV_REPLICA_KEY_FILE: f"{SECRETS_MOUNT}/{REPLICA_KEY}",
        names.ENV_ENGINE_SPEC: f"{SPEC_MOUNT}/{SPEC_KEY}",
        names.ENV_REDIS_URL: settings.redis_url,
        names.ENV_LOG_DIR: f"{HOME}/logs",
        names.ENV_GROUP_SIZE: str(plan.size),
    }
    told |= _to_redis(settings)
    if plan.spec.shared_cache is not None and settings.tier is not None:
        told |= _to_tier(settings.tier)
    if plan.size > 1:
        told[names.ENV_GROUP_ADDRESS] = f"{host(0)}:{RENDEZVOUS_PORT}"
        told[names.ENV_GROUP_PEERS] = ",".join(host(rank) for rank in range(plan.size))
    found = {
        names.ENV_GROUP_RANK: f"metadata.labels['{names.LABEL_POD_INDEX}']",
        names.ENV_ADVERTISE_HOST: "status.podIP",
    }
    # The version is the API server's default; with it an applied template equals what is stored.
    return [{"name": name, "value": value} for name, value in told.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in found.items()
    ]


def _to_redis(settings: RenderSettings) -> dict[str, str]:
    named = {
        names.ENV_REDIS_USER: settings.redis_user,
        names.ENV_REDIS_SERVER_NAME: settings.redis_server_name,
        names.ENV_REDIS_SENTINEL_USER: settings.redis_sentinel_user,
    }
    return _named_and_filed(named, settings.redis_files, "")


def _to_tier(tier: TierRedis) -> dict[str, str]:
    named = {
        names.ENV_REDIS_URL: tier.url,
        names.ENV_REDIS_USER: tier.user,
        names.ENV_REDIS_SERVER_NAME: tier.server_name,
        names.ENV_REDIS_SENTINEL_USER: tier.sentinel_user,
    }
    told = _named_and_filed(named, tier.files, TIER_PREFIX)
    return {names.tier_variable(variable): value for variable, value in told.items()} | {
        names.ENV_TIER_KEY_FILE: f"{SECRETS_MOUNT}/{TIER_KEY}"
    }


def _named_and_filed(named: Mapping[str, str], files: frozenset[RedisFile], prefix: str) -> dict[str, str]:
    """Variables of a way to Redis: those that have a value, and those that name files of the replica's Secret."""
    return {variable: value for variable, value in named.items() if value} | {
        variable: f"{SECRETS_MOUNT}/{prefix}{file}" for file, variable in _REDIS_VARIABLES.items() if file in files
    }


def _resources(plan: PodPlan) -> Manifest:
    devices = plan.written.pool.devices
    extra = dict(devices.per_pod_extra)
    name = devices.resource.name if devices.resource else "cpu"
    if name == "cpu":
        # Cores may be borrowed while they are idle; memory may not.
        memory = {"memory": devices.memory}
        return {"requests": {name: str(plan.devices_per_pod)} | memory | extra, "limits": memory | extra}
    counted = {name: str(plan.devices_per_pod)} | extra
    return {"requests": dict(counted), "limits": counted}


def _volumes(plan: PodPlan) -> list[Manifest]:
    name = revision_name(plan.owner.name, plan.pool, plan.revision)
    return [
        {"name": "engine-spec", "configMap": {"name": name, "defaultMode": 0o444}},
        # Owner root, group the pod's: readable by the worker and nobody else.
        {"name": "replica-secrets", "secret": {"secretName": REPLICA, "defaultMode": 0o440}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _toleration(toleration: Toleration) -> Manifest:
    dumped: Mapping[str, Any] = toleration.model_dump(by_alias=True)
    return {name: value for name, value in dumped.items() if value not in (None, "")}


def _ours_again(merged: Manifest, ours: Manifest, identity: list[Manifest]) -> Manifest:
    """Put back what no template may change, and give every added container our security context.

    A template may remove a list of ours by null; what the pod cannot be without comes back.
    """
    metadata, spec, our_spec = {**merged["metadata"]}, {**merged["spec"]}, ours["spec"]
    for kind in ("labels", "annotations"):
        metadata[kind] = {**(metadata.get(kind) or {}), **ours["metadata"][kind]}
    for name in ("nodeName", "serviceAccount", "restartPolicy"):
        spec.pop(name, None)
    for name in ("serviceAccountName", "automountServiceAccountToken", "terminationGracePeriodSeconds"):
        spec[name] = our_spec[name]
    spec["schedulingGates"] = merge(spec.get("schedulingGates", []), our_spec["schedulingGates"], "schedulingGates")
    private = [volume for volume in our_spec["volumes"] if volume["name"] in _PRIVATE_VOLUMES]
    spec["volumes"] = merge(spec.get("volumes", []), private, "volumes")
    spec["containers"] = [
        _with_identity(container, our_spec["containers"][0], identity)
        if container["name"] == ENGINE_CONTAINER
        else container
        for container in spec.get("containers", our_spec["containers"])
    ]
    for part in ("initContainers", "containers"):
        if part in spec:
            spec[part] = [{"securityContext": CONTAINER_SECURITY} | container for container in spec[part]]
    return {"metadata": metadata, "spec": spec}


def _with_identity(engine: Manifest, ours: Manifest, identity: list[Manifest]) -> Manifest:
    mounts = [mount for mount in ours["volumeMounts"] if mount["name"] in _PRIVATE_VOLUMES]
    paths = {mount["mountPath"] for mount in mounts}
    others = [mount for mount in engine.get("volumeMounts", []) if mount["mountPath"] not in paths]
    return {**engine, "env": merge(engine.get("env", []), identity, "env"), "volumeMounts": [*mounts, *others]}
