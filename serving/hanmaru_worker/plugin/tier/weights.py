"""A checkpoint's identity, cheap enough for half a terabyte: what a page's name says of the weights that made it.

`storage` asks once, after the weights were read, so that most of what is looked at lies in the page cache. It reads
`config.json`, every file's safetensors header (names, types and shapes of all tensors) and from each tensor a few bytes
of its beginning, middle and end. Training, merging or quantising changes those. A file that was edited by hand so that
none of them changes looks the same: give such a model a name of its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import BinaryIO

from hanmaru_contracts.errors import ErrorCode, HanmaruError

SAMPLE_BYTES = 64
_MAX_HEADER_BYTES = 100 * 1024 * 1024


def content_digest(checkpoint: Path, *more: str) -> str:
    """32 hexadecimal digits for the weights and whatever else decides what a page holds.

    Raises HanmaruError (CONFIGURATION) where there are no safetensors files to look at.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(checkpoint.glob("*.safetensors"))
        if not files:
            raise _wrong(f"{checkpoint} has no safetensors files: the shared cache cannot tell whose pages it holds")
        _add(digest, *(part.encode() for part in more), (checkpoint / "config.json").read_bytes())
        for path in files:
            with path.open("rb") as file:
                _add(digest, path.name.encode())
                _add_tensors(digest, file, path)
    except OSError as error:
        raise _wrong(f"cannot read the checkpoint {checkpoint}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _add_tensors(digest: hashlib._Hash, file: BinaryIO, path: Path) -> None:
    (header_bytes,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    if not 0 < header_bytes <= _MAX_HEADER_BYTES:
        raise _wrong(f"{path} is no safetensors file")
    header = file.read(header_bytes)
    _add(digest, header)
    try:
        tensors = json.loads(header)
        spans = sorted(tuple(map(int, t["data_offsets"])) for name, t in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _wrong(f"{path} is no safetensors file") from error
    for begin, end in spans:
        size = min(SAMPLE_BYTES, end - begin)
        for place in (begin, (begin + end - size) // 2, end - size):
            file.seek(8 + header_bytes + place)
            _add(digest, file.read(size))


def _add(digest: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
