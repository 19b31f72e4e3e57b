"""Secrets that a worker is given as files; its settings and the shared cache in its engine read them by this."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError

KEY_BYTES = 32
"""Of every key that is derived for one replica."""


def read_secret(path: Path) -> str:
    """Contents without surrounding white space, of a file that others cannot read.

    A group may read it: Kubernetes mounts Secrets group-readable for pods with an fsGroup. Raises HanmaruError
    (CONFIGURATION) that quotes nothing of it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & stat.S_IRWXO:
                raise _wrong(f"{path} has mode {mode:04o}, so every user may use it; run: chmod 600 {path}")
            return file.read().decode().strip()
    except OSError as error:
        raise _wrong(f"cannot read the secret file {path}: {error.strerror}") from error


def read_key(path: Path, what: str) -> bytes:
    """A key of `KEY_BYTES`, written in hexadecimal digits. Raises HanmaruError (CONFIGURATION)."""
    text = read_secret(path)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise _wrong(f"the {what} in {path} is not {2 * KEY_BYTES} hexadecimal digits")
    return key


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
