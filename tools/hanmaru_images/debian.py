"""A small Debian 12 with Python as a base image, made by debootstrap: for machines without a registry, and for tests.

`make images BASE=debian` and the images of `tests/cluster` use it. The root file system is kept as a tar in the cache
folder and comes into a builder's store from there. It holds nothing of this machine: no host name, resolver or log.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hanmaru_images.builder import LAYER_EPOCH_S, Build, Builder, build_command, has_image, run
from hanmaru_images.context import digest
from hanmaru_images.kept import folder, locked

SUITE = "bookworm"
PACKAGES = ("python3.11", "python3-minimal", "ca-certificates")
ENV_MIRROR = "DEBIAN_MIRROR"
MIRROR = "http://deb.debian.org/debian"
_TIMEOUT_S = 900.0
_OF_THE_MACHINE = ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/log", "var/cache/apt", "var/lib/apt/lists")
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale")
_DOCKERFILE = "FROM scratch\nADD root.tar /\n"


def base_digest() -> str:
    """Names what the base is made of."""
    return digest([SUITE.encode(), " ".join(PACKAGES).encode(), " ".join((*_OF_THE_MACHINE, *_UNREAD)).encode()])


def debian_base(builder: Builder, environ: Mapping[str, str] = os.environ) -> str:
    """The base's reference in the builder's store; makes it when it is not there (a minute and a half, once)."""
    reference = f"localhost/hanmaru-test/base:{SUITE}-{base_digest()[:12]}"
    if has_image(builder, reference):
        return reference
    root = _root_tar(environ)
    with locked(environ, "base"), tempfile.TemporaryDirectory(prefix="hanmaru-base-") as context:
        if has_image(builder, reference):
            return reference
        Path(context, "Dockerfile").write_text(_DOCKERFILE, encoding="utf-8")
        os.link(root, Path(context, "root.tar")) if _same_device(root, context) else shutil.copy(root, context)
        run(build_command(builder, Build(Path(context), reference)), quiet=True, timeout_s=_TIMEOUT_S)
    return reference


def _same_device(one: Path, other: str) -> bool:
    return one.stat().st_dev == Path(other).stat().st_dev


def _root_tar(environ: Mapping[str, str]) -> Path:
    kept = folder(environ) / f"base-{base_digest()[:16]}-root.tar"
    if kept.exists():
        return kept
    if platform.system() != "Linux" or os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise RuntimeError(
            "a Debian base is made by debootstrap, as root on Linux (apt install debootstrap); without BASE "
            "the base comes from its registry"
        )
    with locked(environ, "base"):
        if not kept.exists():
            _bootstrap(kept, environ.get(ENV_MIRROR) or MIRROR)
    return kept


def _bootstrap(kept: Path, mirror: str) -> None:
    print(f"Making a Debian {SUITE} base by debootstrap, once, about a minute and a half …", flush=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=kept.parent) as work:
        root, partial = Path(work) / "root", Path(work) / "root.tar"
        options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        run(["debootstrap", *options, SUITE, str(root), mirror], quiet=True, timeout_s=_TIMEOUT_S)
        for name in (*_OF_THE_MACHINE, *_UNREAD):
            _clear(root / name)
        excluded = ["--exclude=./dev/*", "--exclude=__pycache__"]
        command = ["tar", "-C", str(root), "--numeric-owner", "--sort=name", f"--mtime=@{LAYER_EPOCH_S}", *excluded]
        subprocess.run([*command, "-cf", str(partial), "."], check=True, timeout=_TIMEOUT_S)
        partial.rename(kept)


def _clear(path: Path) -> None:
    """Remove a file, or what is in a folder: programs expect the folder itself."""
    if path.is_dir():
        for inside in path.iterdir():
            shutil.rmtree(inside) if inside.is_dir() and not inside.is_symlink() else inside.unlink()
    else:
        path.unlink(missing_ok=True)
