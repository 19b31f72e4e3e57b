"""Prints the locked requirements whose distribution this interpreter lacks, in whatever version; hashes with them.

A base image that brings an engine keeps every package it was built with, and gets only what is not there. Run by the
worker's Dockerfile inside the image; standard library only. Whether what the base has is new enough is said afterwards,
by the installation of our wheel: `install.sh checked`.

    python missing.py REQUIREMENTS [NAME-PREFIX...]

With prefixes only the requirements whose names begin with one of them, so that an environment of ten gigabytes can be
several layers.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path


def missing(requirements: str, installed: set[str], prefixes: tuple[str, ...] = ("",)) -> str:
    """The requirements, each with its indented lines, that none of `installed` (normalised names) stands for."""
    kept = []
    for block in re.split(r"^(?=[A-Za-z0-9])", requirements, flags=re.MULTILINE):
        name = re.match(r"[A-Za-z0-9._-]+", block)
        if name is not None and name[0].startswith(prefixes) and normalised(name[0]) not in installed:
            kept.append(block)
    return "".join(kept)


def normalised(name: str) -> str:
    """As indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_names() -> set[str]:
    """Normalised names of what this interpreter can import."""
    return {normalised(found.metadata["Name"]) for found in distributions() if found.metadata["Name"]}


if __name__ == "__main__":
    locked, wanted = Path(sys.argv[1]).read_text(encoding="utf-8"), tuple(sys.argv[2:]) or ("",)
    print(missing(locked, installed_names(), wanted), end="")
