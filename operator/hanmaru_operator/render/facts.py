"""The pod that reads a model's `config.json` for the planner, and the ConfigMap that keeps what it found. Pure.

The pod runs in the deployment's namespace and mounts the source as the workers will, so the operator itself reads no
tenant's volume, Secret or hub. It answers by its termination message: JSON of at most 4 KiB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hanmaru_contracts import names
from hanmaru_contracts.crd.v1alpha1.model_deployment import Source

from hanmaru_operator.render.identity import Owner, child, deployment_labels
from hanmaru_operator.render.revision import source_hash
from hanmaru_operator.render.security import CONTAINER_SECURITY, POD_SECURITY
from hanmaru_operator.render.settings import RenderSettings
from hanmaru_operator.render.source import TOKEN_FILE, SourceParts, checkpoint_path, source_parts, token_parts
from hanmaru_operator.types import Manifest

DEADLINE_S = 600
"""A claim may have to be attached and an image of hundreds of gigabytes pulled before the pod starts."""
_MESSAGE = "/dev/termination-log"


def model_facts_pod(owner: Owner, source: Source, name: str, settings: RenderSettings) -> Manifest:
    """The pod. It runs once; its failure's message is for the deployment's status."""
    parts = token_parts(source.hugging_face) if source.hugging_face else source_parts(source)
    labels = deployment_labels(owner, names.COMPONENT_MODEL_FACTS) | {names.LABEL_SOURCE: source_hash(source)}
    spec: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "containers": [_reader(source, parts, settings)],
        "volumes": [*parts.volumes, {"name": "tmp", "emptyDir": {}}],
    }
    if secrets := (*settings.image_pull_secrets, *parts.pull_secrets):
        spec["imagePullSecrets"] = [{"name": secret} for secret in dict.fromkeys(secrets)]
    return child("v1", "Pod", name, owner, labels) | {"spec": spec}


def facts_config_map_name(deployment: str) -> str:
    """Name of the ConfigMap that keeps a deployment's facts."""
    return f"{deployment}-model-facts"


def facts_config_map(owner: Owner, facts: Mapping[str, Mapping[str, Any]]) -> Manifest:
    """What was found, by `source_hash`: a source is read once, however often pods and operators come and go."""
    labels = deployment_labels(owner, names.COMPONENT_MODEL_FACTS)
    data = {key: json.dumps(found, sort_keys=True, ensure_ascii=False) for key, found in sorted(facts.items())}
    return child("v1", "ConfigMap", facts_config_map_name(owner.name), owner, labels) | {"data": data}


def _reader(source: Source, parts: SourceParts, settings: RenderSettings) -> Manifest:
    container: Manifest = {
        "name": names.COMPONENT_MODEL_FACTS,
        "image": settings.operator_image,
        "command": ["hanmaru", "model-facts", *_arguments(source)],
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 # the pod's own
        "securityContext": CONTAINER_SECURITY,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "terminationMessagePath": _MESSAGE,
        # Should it die without a word, the end of its log has to do.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*parts.mounts, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    return container | ({"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {})


def _arguments(source: Source) -> list[str]:
    """`--flag=value` throughout: a value that begins with a dash stays a value."""
    out = f"--out={_MESSAGE}"
    hub = source.hugging_face
    if hub is None:
        return [f"--checkpoint={checkpoint_path(source)}", out]
    token = [f"--token-file={TOKEN_FILE}"] if hub.token_secret_ref else []
    return [f"--repo={hub.repo}", f"--revision={hub.revision}", f"--endpoint={hub.endpoint}", *token, out]
