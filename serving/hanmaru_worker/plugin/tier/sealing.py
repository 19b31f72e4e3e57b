"""How a page stands in Redis: framed, and sealed with a key that Redis does not have. Pure.

A frame is `HMT1`, the payload's length, the payload, and an HMAC-SHA256 over the page's whole name, the header and the
payload. The MAC's key is derived from the model's tier key (which workers of the model have, while Redis and workers of
other models have not), the digest of weights and flags, and the isolation domain. So who can write into Redis can make
a worker lose a hit, and nothing else: made-up bytes, a page moved to another name, or one of another model, rank,
element type or domain are refused. What is not hidden: whoever can read Redis can read a page's bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

MAC_BYTES = 32
_HEADER = struct.Struct(">4sQ")
_MAGIC = b"HMT1"
_PURPOSE = b"hanmaru tier page"

OVERHEAD_BYTES = _HEADER.size + MAC_BYTES
"""What a frame has beyond its payload."""


def domain_digest(extra_key: str | None, cache_salt: str) -> bytes:
    """Stands for a request's isolation domain: its salt, and what SGLang parts its cache by besides (an adapter)."""
    return hashlib.sha256(_joined(b"domain", (extra_key or "").encode(), cache_salt.encode())).digest()


def page_key(tier_key: bytes, content: str, domain: bytes) -> bytes:
    """The MAC key of one model's pages in one isolation domain."""
    return hmac.digest(tier_key, _joined(_PURPOSE, content.encode(), domain), hashlib.sha256)


def seal(key: bytes, name: str, payload: bytes | memoryview) -> bytes:
    """The frame to store under `name`."""
    header = _HEADER.pack(_MAGIC, len(payload))
    return b"".join((header, payload, _mac(key, name, header, payload)))


def unseal(key: bytes, name: str, frame: bytes, payload_bytes: int) -> memoryview | None:
    """The payload of a frame that was sealed for this name by somebody with this key; None for anything else."""
    if len(frame) != payload_bytes + OVERHEAD_BYTES:
        return None
    view = memoryview(frame)
    header, payload, mac = view[: _HEADER.size], view[_HEADER.size : -MAC_BYTES], view[-MAC_BYTES:]
    if header != _HEADER.pack(_MAGIC, payload_bytes):
        return None
    return payload if hmac.compare_digest(_mac(key, name, header, payload), mac) else None


def _mac(key: bytes, name: str, header: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    mac = hmac.new(key, digestmod=hashlib.sha256)
    mac.update(_joined(name.encode()))
    mac.update(header)
    mac.update(payload)
    return mac.digest()


def _joined(*parts: bytes) -> bytes:
    """With each part's length, so that no two lists of parts look the same."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
