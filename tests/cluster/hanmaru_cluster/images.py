"""Archives of the images that real nodes run, built without a registry: `archives()` has a file for each name.

Gateway and operator are the product's own, on a Debian base made here. The others exist for tests alone: Redis, the
collector, a client, the tiny checkpoint, and a worker whose environment is mounted instead of copied (10 GB). Each is
built again when its inputs changed. Layers are kept in a store of their own, beside the archives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hanmaru_images import context
from hanmaru_images.archive import save
from hanmaru_images.builder import (
    Build,
    Builder,
    build_command,
    buildah,
    find_builder,
    find_secrets,
    run,
)
from hanmaru_images.catalog import IMAGES
from hanmaru_images.debian import base_digest, debian_base
from hanmaru_images.kept import folder, kept_archive
from hanmaru_images.make import BUILD_TIMEOUT_S, make_image
from hanmaru_testing.otlp_collector import collector_path

DOCKERFILES = Path(__file__).parents[1] / "images"
CHECKPOINT = context.ROOT / "checkpoints/tiny-k-exaone"
PRODUCT = ("gateway", "operator")
PRODUCT_REGISTRY = "localhost/hanmaru"
"""For the chart's `global.imageRegistry`."""
TEST_REGISTRY = "localhost/hanmaru-test"
_BUILDS_AT_ONCE = 2
"""Half of a build waits for the disk."""
_STEPS_KEPT = 800
"""A build that changes our sources alone adds 15, some 10 MB in all."""


@dataclass(frozen=True, slots=True)
class _TestImage:
    """An image for tests: what is put beside its Dockerfile, and what names that before it is put there."""

    fill: Callable[[Path], None]
    inputs: Callable[[], Iterable[bytes]]
    has_base: bool = True


def archives(names: Sequence[str] = ()) -> dict[str, Path]:
    """Short name -> docker-archive, of all images or the named ones; builds what changed. Raises RuntimeError.

    The archive's own reference is `reference(name)`.
    """
    wanted = names or NAMES
    with ThreadPoolExecutor(_BUILDS_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(_archive, wanted), strict=True))


def reference(name: str) -> str:
    """What pods call the image."""
    version, _ = context.project()
    return f"{PRODUCT_REGISTRY if name in PRODUCT else TEST_REGISTRY}/{name}:{version}"


def store_builder() -> Builder:
    """The builder, with images of its own where it can have them."""
    return find_builder(os.environ, folder() / "store")


def _builder_with_room() -> Builder:
    """Every step of every build stays as a layer; after a few dozen builds those without a name go, once."""
    builder = store_builder()
    if builder.program == "buildah":
        listed = subprocess.run([*buildah(builder), "images", "--all", "--quiet"], capture_output=True, check=True)
        if len(listed.stdout.split()) > _STEPS_KEPT:
            run([*buildah(builder), "rmi", "--prune"], quiet=True, timeout_s=BUILD_TIMEOUT_S)
    return builder


def _archive(name: str) -> Path:
    if name in PRODUCT:
        inputs = list(context.inputs(IMAGES[name]))
        build = partial(_build_product, name)
        has_base = True
    else:
        image = _TEST_IMAGES[name]
        inputs = [*image.inputs(), *(file.read_bytes() for file in sorted((DOCKERFILES / name).iterdir()))]
        build = partial(_build_test_image, name)
        has_base = image.has_base
    digest = context.digest([reference(name).encode(), base_digest().encode() if has_base else b"", *inputs])
    return kept_archive(name, digest, build)


def _build_product(name: str, archive: Path) -> None:
    builder = _builder_with_room()
    print(f"Building {reference(name)} …", file=sys.stderr, flush=True)
    make_image(builder, IMAGES[name], reference(name), base=debian_base(builder), quiet=True)
    save(builder, reference(name), archive)


def _build_test_image(name: str, archive: Path) -> None:
    builder = _builder_with_room()
    print(f"Building {reference(name)} …", file=sys.stderr, flush=True)
    image = _TEST_IMAGES[name]
    arguments = {"BASE_IMAGE": debian_base(builder)} if image.has_base else {}
    with tempfile.TemporaryDirectory(prefix="hanmaru-image-") as made:
        inside, secrets = Path(made) / "context", Path(made) / "secrets"
        shutil.copytree(DOCKERFILES / name, inside)
        secrets.mkdir(mode=0o700)
        image.fill(inside)
        build = Build(inside, reference(name), arguments, secrets=find_secrets(os.environ, secrets))
        run(build_command(builder, build), quiet=True, timeout_s=BUILD_TIMEOUT_S)
    save(builder, reference(name), archive)


def _nothing(_: Path) -> None:
    """All it copies lies beside its Dockerfile."""


def _no_inputs() -> Iterable[bytes]:
    return ()


def _fill_collector(inside: Path) -> None:
    shutil.copy(collector_path(), inside / "otelcol")


def _fill_checkpoint(inside: Path) -> None:
    shutil.copytree(CHECKPOINT, inside / "checkpoint")


def _client_requirements() -> str:
    return context.locked_requirements("--group", "client")


def _fill_client(inside: Path) -> None:
    shutil.copytree(context.SHARED, inside, dirs_exist_ok=True)
    (inside / "requirements.txt").write_text(_client_requirements(), encoding="utf-8")
    context.put_uv(inside)
    context.put_wheel(inside)


def _client_inputs() -> Iterable[bytes]:
    shared = (file.read_bytes() for file in sorted(context.SHARED.iterdir()))
    return [_client_requirements().encode(), context.wheel_digest().encode(), *shared]


def _environment_pth() -> str:
    """A line that `site` runs: takes in the environment with its own `.pth` files, as its interpreter would."""
    packages = Path(sys.prefix) / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    return f"import site; site.addsitedir({str(packages)!r})\n"


def _worker_requirements() -> str:
    """What the lock wants for Debian's older Python and this environment, made for another, does not have."""
    with tempfile.NamedTemporaryFile("w+", suffix=".txt", encoding="utf-8") as wanted:
        wanted.write(context.extra_requirements("worker"))
        wanted.flush()
        command = [sys.executable, str(context.SHARED / "missing.py"), wanted.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _fill_worker(inside: Path) -> None:
    (inside / "hanmaru.pth").write_text(_environment_pth(), encoding="utf-8")
    (inside / "requirements.txt").write_text(_worker_requirements(), encoding="utf-8")
    shutil.copytree(context.SHARED, inside, dirs_exist_ok=True)
    context.put_uv(inside)


_TEST_IMAGES = {
    "redis": _TestImage(_nothing, _no_inputs),
    "collector": _TestImage(_fill_collector, lambda: [str(collector_path().parent.name).encode()], has_base=False),
    "worker": _TestImage(_fill_worker, lambda: [_environment_pth().encode(), _worker_requirements().encode()]),
    "client": _TestImage(_fill_client, _client_inputs),
    "checkpoint": _TestImage(_fill_checkpoint, lambda: [context.sources_digest([CHECKPOINT]).encode()], has_base=False),
}
NAMES = (*PRODUCT, *_TEST_IMAGES)


def main() -> None:
    """Print name, reference, size and path of every image; `python -m hanmaru_cluster.images [NAME...]`."""
    for name, path in archives(sys.argv[1:]).items():
        print(f"{name:12} {reference(name):40} {path.stat().st_size / 1e6:6.0f} MB  {path}", flush=True)


if __name__ == "__main__":
    main()
