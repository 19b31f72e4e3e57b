"""Archives of images kept by the digest of what they are made of, below `$HANMARU_HOME/images`.

`kept_archive` returns the file that is there, or lets it be built: once however many processes ask. Of each image the
newest few stay.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_KEPT_PER_IMAGE = 2
"""A second checkout, or the commit before, need not build again; an archive is up to 900 MB."""


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where archives, bases and the store of the images' layers are."""
    home = environ.get("HANMARU_HOME") or Path.home() / ".cache/hanmaru"
    found = Path(home) / "images"
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def locked(environ: Mapping[str, str], name: str) -> Iterator[None]:
    """One process at a time for a name."""
    with (folder(environ) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kept_archive(
    name: str, digest: str, build: Callable[[Path], None], environ: Mapping[str, str] = os.environ
) -> Path:
    """The archive of `name` made of what `digest` names; `build` writes it to the path it is given."""
    path = folder(environ) / f"{name}-{digest[:16]}.tar"
    with locked(environ, name):
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            build(partial)
            partial.rename(path)
        path.touch()
        for old in _surplus(name, environ):
            old.unlink(missing_ok=True)
    return path


def _surplus(name: str, environ: Mapping[str, str]) -> list[Path]:
    pattern = f"{name}-{'[0-9a-f]' * 16}.tar"
    found = sorted(folder(environ).glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)
    return found[_KEPT_PER_IMAGE:]
