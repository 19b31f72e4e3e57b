"""`make images`: builds the images gateway and operator, or those that IMAGE names, with buildah or docker.

The CUDA worker's Dockerfile is the CPU worker's on another base. SBOMs are in the images, under /usr/share/hanmaru;
with `--archive FOLDER` images are also written there as docker-archives with their SBOM beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hanmaru_images.archive import image_sbom, layer_digests, save
from hanmaru_images.builder import Builder, find_builder
from hanmaru_images.catalog import DEFAULT_IMAGES, IMAGES, Image
from hanmaru_images.context import project
from hanmaru_images.debian import debian_base
from hanmaru_images.kept import folder
from hanmaru_images.make import make_image

DEBIAN = "debian"


def main() -> int:
    """Read the command line and carry it out; 0 when all was built."""
    parser = argparse.ArgumentParser(prog="make images", description=__doc__)
    parser.add_argument("--image", action="append", choices=IMAGES, help="which (default: gateway and operator)")
    parser.add_argument("--base", help="another base image, or 'debian': one made here by debootstrap, as root")
    parser.add_argument("--registry", default="hanmaru", help="first part of the images' names (default: hanmaru)")
    parser.add_argument("--archive", type=Path, help="a folder to write docker-archives and SBOMs to")
    parser.add_argument("--twice", action="store_true", help="build twice without cache; fail when a layer differs")
    chosen = parser.parse_args()
    try:
        builder = find_builder(os.environ)
        base = debian_base(builder) if chosen.base == DEBIAN else chosen.base
        for name in chosen.image or DEFAULT_IMAGES:
            reference = f"{chosen.registry}/{IMAGES[name].repository}:{project()[0]}{IMAGES[name].tag_suffix}"
            if chosen.twice:
                _build_twice(builder, IMAGES[name], reference, base)
            else:
                _build(builder, IMAGES[name], reference, base)
            if chosen.archive:
                _archive(builder, reference, chosen.archive / f"{name}-{project()[0]}.tar")
    except RuntimeError as error:
        print(f"make images: {error}", file=sys.stderr)
        return 1
    if not chosen.image:
        print("The workers are built by name: IMAGE=worker (for CPUs, 10 GB), IMAGE=worker-cuda (on SGLang's image).")
    return 0


def _build(builder: Builder, image: Image, reference: str, base: str | None, *, use_cache: bool = True) -> None:
    print(f"=== {reference}: building with {builder.program} on {base or image.base or 'its default base'}", flush=True)
    took_s = make_image(builder, image, reference, base=base, quiet=False, use_cache=use_cache)
    print(f"=== {reference}: built in {took_s:.0f} s", flush=True)


def _build_twice(builder: Builder, image: Image, reference: str, base: str | None) -> None:
    """The same commit must give the same layers. Raises RuntimeError when it does not."""
    seen = []
    for number in (1, 2):
        _build(builder, image, reference, base, use_cache=False)
        archive = folder() / f"twice-{number}.tar"
        try:
            save(builder, reference, archive)
            seen.append(layer_digests(archive))
        finally:
            archive.unlink(missing_ok=True)
    if seen[0] != seen[1]:
        raise RuntimeError(f"{reference}: two builds differ (or sources changed meanwhile): {seen[0]} and {seen[1]}")
    print(f"=== {reference}: both builds have the layers {' '.join(digest[:12] for digest in seen[0])}")


def _archive(builder: Builder, reference: str, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    save(builder, reference, archive)
    sbom = archive.with_suffix(".cdx.json")
    sbom.write_bytes(image_sbom(archive))
    print(f"=== {reference}: {archive} ({archive.stat().st_size / 1e6:.0f} MB), {sbom.name}")


if __name__ == "__main__":
    raise SystemExit(main())
