"""The product's archives, and an image's root file system with a process in it as a pod has it.

As root a missing builder is a failure; without root these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hanmaru_cluster import images
from hanmaru_images.archive import image_config
from hanmaru_images.builder import buildah

Run = Callable[..., "subprocess.CompletedProcess[str]"]
_RUN_TIMEOUT_S = 120.0
# A read-only root, memory at /tmp, no capability, no way to more rights: what the pods' security context asks for.
_AS_IN_A_POD = """
set -eu
root=$1 mounted=$2; shift 2
mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"; mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"
if [ -n "$mounted" ]; then mount --bind "$mounted" "$root/mnt"; mount -o remount,bind,ro "$root/mnt"; fi
exec chroot "$root" setpriv --reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --no-new-privs -- "$@"
"""


@pytest.fixture(scope="session", params=images.PRODUCT)
def image(request: pytest.FixtureRequest) -> str:
    """Name of one of the product's images."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def archive(image: str) -> Path:
    """Its archive, built where its inputs changed."""
    if os.geteuid() != 0:
        pytest.skip("building an image on a base made by debootstrap needs root")
    return images.archives([image])[image]


@pytest.fixture(scope="session")
def run_in(archive: Path) -> Iterator[Run]:
    """Runs a command in the image, as user 10001 with a read-only root; `mounted` is a folder for /mnt."""
    called = buildah(images.store_builder())

    def ask(*arguments: str) -> str:
        done = subprocess.run([*called, *arguments], capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=True)
        return done.stdout.strip()

    environment = dict(pair.split("=", 1) for pair in image_config(archive)["config"]["Env"])
    container = ask("from", f"docker-archive:{archive}")
    try:
        root = ask("mount", container)

        def run(*command: str, mounted: Path | None = None) -> subprocess.CompletedProcess[str]:
            arguments = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "sh", "-c", _AS_IN_A_POD]
            return subprocess.run(
                [*arguments, "sh", root, str(mounted or ""), *command],
                env=environment, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=False,
            )  # fmt: skip

        yield run
    finally:
        ask("rm", container)
