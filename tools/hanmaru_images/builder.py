"""Commands of buildah and docker for one build, and which of the two this machine has.

`find_builder` looks; the commands are pure. A certificate authority and a package index that the environment names
become build secrets: mounted while a step runs, in no layer, argument or history.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ENV_BUILDER = "HANMARU_IMAGE_BUILDER"
"""`buildah` or `docker`, where both are there and the second is meant."""
LAYER_EPOCH_S = 1_700_000_000
"""The time of the image and, where buildah builds, of every file in the layers. One for all: a layer kept from an
earlier commit, in a builder, a registry or a node, is then the one that a fresh machine builds. When the image was made
is a label."""
_CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_LOOK_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Builder:
    """The program that builds."""

    program: Literal["buildah", "docker"]
    store: Path | None = None
    """Of buildah: a folder for its images instead of the machine's, so that tests leave a developer's images alone."""


@dataclass(frozen=True, slots=True)
class Build:
    """One image to build from a folder."""

    folder: Path
    reference: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    use_cache: bool = True


def find_builder(environ: Mapping[str, str], store: Path | None = None) -> Builder:
    """The one to use: buildah, else a docker whose daemon answers. Raises RuntimeError saying what to install."""
    wanted = environ.get(ENV_BUILDER)
    if wanted not in (None, "buildah", "docker"):
        raise RuntimeError(f"{ENV_BUILDER}={wanted} is neither buildah nor docker")
    if wanted != "docker" and shutil.which("buildah"):
        return Builder("buildah", store)
    if wanted != "buildah" and shutil.which("docker"):
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=_LOOK_TIMEOUT_S, check=False)
        if asked.returncode == 0:
            return Builder("docker")
        raise RuntimeError("docker is there and its daemon does not answer; start it, or install buildah")
    raise RuntimeError("neither buildah nor docker is there; on Debian: apt install buildah")


def build_command(builder: Builder, build: Build) -> list[str]:
    """The command that builds and names the image."""
    options = [
        *(f"--build-arg={name}={value}" for name, value in sorted(build.arguments.items())),
        *(f"--label={name}={value}" for name, value in sorted(build.labels.items())),
        *(f"--secret=id={name},src={path}" for name, path in sorted(build.secrets.items())),
        *([] if build.use_cache else ["--no-cache"]),
        f"--tag={build.reference}",
        str(build.folder),
    ]
    if builder.program == "docker":
        # The image's time alone. Files get theirs with an output that has rewrite-timestamp=true, for which docker's
        # default builder is not enough.
        return ["docker", "build", f"--build-arg=SOURCE_DATE_EPOCH={LAYER_EPOCH_S}", *options]
    # Without containers of their own the steps need no runtime, no cgroup and, for downloads, no bridge.
    ways = ["--layers", "--isolation=chroot", "--network=host", f"--timestamp={LAYER_EPOCH_S}"]
    return [*buildah(builder), "bud", *ways, *options]


def save_command(builder: Builder, reference: str, archive: Path) -> list[str]:
    """The command that writes an image as a docker-archive, which every runtime can load with its name."""
    if builder.program == "docker":
        return ["docker", "save", f"--output={archive}", reference]
    return [*buildah(builder), "push", "--quiet", reference, f"docker-archive:{archive}:{reference}"]


def has_image(builder: Builder, reference: str) -> bool:
    """Whether the builder's store has the image."""
    looked = [*buildah(builder), "inspect", "--type=image", reference]
    command = ["docker", "image", "inspect", reference] if builder.program == "docker" else looked
    return subprocess.run(command, capture_output=True, timeout=_LOOK_TIMEOUT_S, check=False).returncode == 0


def buildah(builder: Builder) -> list[str]:
    """How buildah is called with its store."""
    if builder.store is None:
        return ["buildah"]
    return ["buildah", f"--root={builder.store / 'images'}", f"--runroot={builder.store / 'run'}"]


def find_secrets(environ: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Build secrets by name, written below `folder` where the environment holds them by value."""
    secrets = {}
    if bundle := _first(environ, _CA_VARIABLES):
        if not Path(bundle).is_file():
            raise RuntimeError(f"the environment names {bundle} as certificate authorities, and there is no such file")
        secrets["ca_bundle"] = Path(bundle)
    if index := _first(environ, _INDEX_VARIABLES):
        secrets["index_url"] = folder / "index_url"
        secrets["index_url"].touch(mode=0o600)
        secrets["index_url"].write_text(index, encoding="utf-8")
    return secrets


def run(command: Sequence[str], *, quiet: bool, timeout_s: float) -> None:
    """Run a builder's command; quietly, its last words are in the RuntimeError that is raised when it fails."""
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, stdout=output, stderr=subprocess.STDOUT if quiet else None, text=True, timeout=timeout_s,
        check=False, env={**os.environ, "DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        words = f":\n{done.stdout.strip()[-3000:]}" if quiet else ", see above"
        raise RuntimeError(f"{' '.join(command[:1])} failed with status {done.returncode}{words}")


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((value for name in names if (value := environ.get(name))), None)
