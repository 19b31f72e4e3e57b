"""The folder an image is built from: its Dockerfile, uv, the locked requirements with hashes, and our wheel.

Nothing else of the checkout reaches a build, so no ignore file decides what an image holds. `tools/images.py` and the
test images of `tests/cluster` fill such folders; `sources_digest` tells them whether one would differ from the last.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from hanmaru_images.catalog import Image

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "images/shared"
_UV_TIMEOUT_S = 300.0


def fill(image: Image, folder: Path) -> None:
    """Put everything the Dockerfile of `image` copies into the empty `folder`."""
    shutil.copy(dockerfile(image), folder)
    shutil.copytree(SHARED, folder, dirs_exist_ok=True)
    (folder / "requirements.txt").write_text(extra_requirements(image.extra), encoding="utf-8")
    put_uv(folder)
    put_wheel(folder)


def inputs(image: Image) -> Iterable[bytes]:
    """What decides the content of the image, its base aside; for `digest`."""
    yield extra_requirements(image.extra).encode()
    yield from (file.read_bytes() for file in (dockerfile(image), *sorted(SHARED.iterdir())))
    yield wheel_digest().encode()
    yield uv_version().encode()


def dockerfile(image: Image) -> Path:
    """Where the image's Dockerfile is."""
    return ROOT / "images" / image.repository / "Dockerfile"


@cache
def project() -> tuple[str, Sequence[str]]:
    """Version of the project, and the folders of its packages, as pyproject.toml has them."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found["project"]["version"], tuple(found["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def extra_requirements(extra: str) -> str:
    """Every package that `hanmaru[extra]` needs, at the locked version with its hashes."""
    return locked_requirements("--extra", extra)


@cache
def locked_requirements(*options: str) -> str:
    """What `uv export` says of the lock with these options, without our own distribution and the default groups."""
    return _uv(
        "export", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header", "--no-annotate", *options
    )


def put_uv(folder: Path) -> None:
    """The pinned uv for Linux, whatever this machine is, as `folder/uv`."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    unpacked = folder / "uv.unpacked"
    wanted = ["--no-deps", "--target", str(unpacked), "--python-platform", f"{machine}-manylinux_2_28"]
    _uv("pip", "install", *wanted, f"uv=={uv_version()}")
    (unpacked / "bin/uv").rename(folder / "uv")
    shutil.rmtree(unpacked)


def put_wheel(folder: Path) -> None:
    """Our wheel, the same bytes from the same sources."""
    _uv("build", "--wheel", "--out-dir", str(folder))
    (folder / ".gitignore").unlink(missing_ok=True)


@cache
def wheel_digest() -> str:
    """Of everything that decides the wheel."""
    _, packages = project()
    return sources_digest([ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", *packages)])


def sources_digest(paths: Iterable[Path]) -> str:
    """Of files and folders: names below each and contents, what Python leaves behind aside."""
    found = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(f"{path.name}/{file.relative_to(path).as_posix()}\0".encode())
                found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def digest(parts: Iterable[bytes]) -> str:
    """One name for all parts, each kept apart from the next."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@cache
def uv_version() -> str:
    """Of the uv that `make setup` installs."""
    return _uv("--version").split()[1]


def _uv(*arguments: str) -> str:
    """What uv prints. Raises RuntimeError with its words when it fails."""
    uv = os.environ.get("UV") or str(ROOT / ".tools/uv/bin/uv")
    if not Path(uv).exists() and not shutil.which(uv):
        raise RuntimeError("uv is not there; run `make setup`, which installs it into .tools")
    # An active environment of another checkout is nothing to build with.
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    done = subprocess.run(
        [uv, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_UV_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"uv {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
