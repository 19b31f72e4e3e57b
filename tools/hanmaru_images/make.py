"""Builds one image of the catalog: fills its folder, asks git for commit and time, and runs the builder.

`tools/images.py` calls it for people, `tests/cluster` for its clusters.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from hanmaru_images.builder import Build, Builder, build_command, find_secrets, run
from hanmaru_images.catalog import Image
from hanmaru_images.context import ROOT, fill, project

BUILD_TIMEOUT_S = 5400.0
"""The worker's environment is 4.5 GB to download and 10 GB to unpack."""
SBOM_LABEL = "dev.hanmaru.sbom"
SBOM_FOLDER = "/usr/share/hanmaru"


def make_image(
    builder: Builder,
    image: Image,
    reference: str,
    *,
    base: str | None,
    quiet: bool,
    use_cache: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> float:
    """Build and name the image; the seconds it took. Raises RuntimeError with the builder's words."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hanmaru-image-") as made:
        folder, secrets = Path(made) / "context", Path(made) / "secrets"
        folder.mkdir()
        secrets.mkdir(mode=0o700)
        fill(image, folder)
        build = Build(
            folder,
            reference,
            _arguments(image, base),
            labels(image),
            find_secrets(environ, secrets),
            use_cache,
        )
        run(build_command(builder, build), quiet=quiet, timeout_s=BUILD_TIMEOUT_S)
    return time.monotonic() - begun_s


def labels(image: Image) -> dict[str, str]:
    """The OCI labels, and where in the image the list of its parts is."""
    version, _ = project()
    prefix = "org.opencontainers.image."
    told = {
        "title": f"hanmaru/{image.repository}",
        "description": image.title,
        "version": version,
        "revision": revision(),
        "created": datetime.fromtimestamp(commit_time_s(), UTC).isoformat(),
        "licenses": "Apache-2.0",
        "vendor": "The Hanmaru authors",
    }
    return {prefix + name: value for name, value in told.items()} | {SBOM_LABEL: f"{SBOM_FOLDER}/sbom.cdx.json"}


def commit_time_s() -> int:
    """When the commit was made; `SOURCE_DATE_EPOCH`, or 0, where this is no checkout."""
    return int(_git("log", "-1", "--format=%ct") or os.environ.get("SOURCE_DATE_EPOCH") or 0)


def revision() -> str:
    """The commit; with `-changed` where files differ from it."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown'}{'-changed' if changed else ''}"


def _arguments(image: Image, base: str | None) -> dict[str, str]:
    chosen = base or image.base
    version, _ = project()
    return {"VERSION": version} | ({"BASE_IMAGE": chosen} if chosen else {})


def _git(*arguments: str) -> str:
    """Empty where this is no checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
