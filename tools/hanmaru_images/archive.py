"""Writes an image as a docker-archive and reads what is in one: layers, labels, single files.

Reading needs no builder, so tests look at exactly the file that nodes import.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanmaru_images.builder import Builder, run, save_command
from hanmaru_images.make import SBOM_LABEL

_SAVE_TIMEOUT_S = 1800.0


def save(builder: Builder, reference: str, archive: Path) -> None:
    """Write the image, whole or not at all."""
    partial = archive.with_suffix(".saving")
    partial.unlink(missing_ok=True)
    run(save_command(builder, reference, partial), quiet=True, timeout_s=_SAVE_TIMEOUT_S)
    partial.rename(archive)


def image_config(archive: Path) -> dict[str, Any]:
    """The image's configuration: user, environment, labels, history, digests of its layers."""
    with tarfile.open(archive) as opened:
        found: dict[str, Any] = _json(opened, _manifest(opened)["Config"])
    return found


def layer_digests(archive: Path) -> list[str]:
    """Digests of the unpacked layers, the base's first."""
    return [digest.removeprefix("sha256:") for digest in image_config(archive)["rootfs"]["diff_ids"]]


def references(archive: Path) -> list[str]:
    """The names that a runtime gives the image."""
    with tarfile.open(archive) as opened:
        return list(_manifest(opened)["RepoTags"])


def layers(archive: Path) -> Iterator[tarfile.TarFile]:
    """Every layer in turn, the base's first, as an open tar to walk through once."""
    with tarfile.open(archive) as opened:
        for name in _manifest(opened)["Layers"]:
            with tarfile.open(fileobj=opened.extractfile(name)) as layer:
                yield layer


def image_sbom(archive: Path) -> bytes:
    """The list of the image's parts, from the file that its label names."""
    path = image_config(archive)["config"]["Labels"][SBOM_LABEL].lstrip("/")
    for layer in layers(archive):
        if member := next((one for one in layer if one.name.removeprefix("./") == path), None):
            file = layer.extractfile(member)
            assert file is not None, f"{path} is no file"
            return file.read()
    raise RuntimeError(f"{archive.name}: no layer has {path}")


def _manifest(opened: tarfile.TarFile) -> dict[str, Any]:
    found: dict[str, Any] = _json(opened, "manifest.json")[0]
    return found


def _json(opened: tarfile.TarFile, name: str) -> Any:
    file = opened.extractfile(name)
    assert file is not None, f"{name} is no file"
    return json.loads(file.read())
