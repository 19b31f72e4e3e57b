"""Where a checkpoint comes from -> volumes, mounts and the container that downloads it. Pure.

`pod` and `facts` use it, so the pod that reads a model's facts mounts exactly what the workers will.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.model_deployment import HuggingFaceSource, Source

from hanmaru_operator.types import Manifest

MODEL_MOUNT = "/model"
MODEL_VOLUME = "model"
TOKEN_MOUNT = "/hanmaru/hub"
TOKEN_FILE = f"{TOKEN_MOUNT}/token"
DOWNLOAD_CONTAINER = "download"


@dataclass(frozen=True, slots=True)
class SourceParts:
    """What a pod needs for a checkpoint that is mounted."""

    volumes: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    pull_secrets: tuple[str, ...] = ()


def checkpoint_path(source: Source) -> str:
    """The checkpoint's folder as a container sees it."""
    block = source.persistent_volume_claim or source.image
    return f"{MODEL_MOUNT}/{block.path.strip('/')}".rstrip("/") if block else MODEL_MOUNT


def source_parts(source: Source) -> SourceParts:
    """Volume and read-only mount of a claim or an image; nothing for a hub, whose files do not exist yet."""
    mounts = ({"name": MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True},)
    if claim := source.persistent_volume_claim:
        # Read-only as a volume too: else a kubelet gives every file of it to the pod's group first.
        volume = {"name": MODEL_VOLUME, "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        return SourceParts((volume,), mounts)
    if image := source.image:
        volume = {"name": MODEL_VOLUME, "image": {"reference": image.reference}}
        return SourceParts((volume,), mounts, tuple(secret.name for secret in image.pull_secrets))
    return SourceParts()


def download_parts(source: Source) -> SourceParts:
    """An empty folder for a download of each pod's own, read-only for the engine."""
    if source.hugging_face is None:
        return SourceParts()
    volume = {"name": MODEL_VOLUME, "emptyDir": {}}
    return SourceParts((volume,), ({"name": MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True},))


def download_container(
    hub: HuggingFaceSource, *, commit: str, image: str, not_downloaded: tuple[str, ...], mounts: list[Manifest]
) -> Manifest:
    """The init container that downloads one commit. `mounts` are the pod's writable folders.

    The pods need a way out to the hub; the token reaches the container by reference and never an argument.
    """
    command = ["hf", "download", f"--revision={commit}", f"--local-dir={MODEL_MOUNT}"]
    # Behind "--" nothing is an option, whatever a user called the repository.
    command += [*(f"--exclude={pattern}" for pattern in not_downloaded), "--", hub.repo]
    environment: list[Manifest] = [
        {"name": "HF_ENDPOINT", "value": hub.endpoint},
        {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
    ]
    if ref := hub.token_secret_ref:
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}})
    return {
        "name": DOWNLOAD_CONTAINER,
        "image": image,
        "command": command,
        "env": environment,
        "volumeMounts": [{"name": MODEL_VOLUME, "mountPath": MODEL_MOUNT}, *mounts],
    }


def token_parts(hub: HuggingFaceSource) -> SourceParts:
    """The hub's token as a file, for the pod that reads a model's facts."""
    ref = hub.token_secret_ref
    if ref is None:
        return SourceParts()
    secret = {"secretName": ref.name, "items": [{"key": ref.key, "path": "token"}], "defaultMode": 0o440}
    mount = {"name": "hub-token", "mountPath": TOKEN_MOUNT, "readOnly": True}
    return SourceParts(({"name": "hub-token", "secret": secret},), (mount,))
