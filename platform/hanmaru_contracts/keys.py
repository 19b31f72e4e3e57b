"""One platform secret, everything else derived from it (HMAC-SHA256).

Operator and gateways hold the secret; a worker learns its replica key and derives its engine's key; where its model has
a shared cache, it learns that model's tier key too. Redis holds none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from hanmaru_contracts.names import API_KEY_PREFIX, ModelId, ReplicaId

MAX_API_KEY_CHARS = 256
"""Ours have 47; what is longer is refused before it is hashed."""
MIN_API_KEY_CHARS = 16
"""Of keys that people bring in a Secret; shorter ones can be guessed."""

_SEPARATOR = b"\x00"


def _derive(key: bytes, *parts: str) -> bytes:
    # A separator that no part can hold keeps ("a", "bc") and ("ab", "c") apart.
    return hmac.digest(key, _SEPARATOR.join(part.encode() for part in parts), hashlib.sha256)


def replica_key(platform_secret: bytes, model: ModelId, replica: ReplicaId) -> bytes:
    """32 bytes: signs the replica's registrations, and is all that its worker knows."""
    return _derive(platform_secret, "replica", model, replica)


def engine_api_key(replica: bytes) -> str:
    """64 hexadecimal digits: what gateways show the replica's engine, from that replica's key."""
    return _derive(replica, "engine").hex()


def tier_key(platform_secret: bytes, model: ModelId) -> bytes:
    """32 bytes: seals the pages of one model's shared cache. Every worker of the model has it, and no other's."""
    return _derive(platform_secret, "tier", model)


def cache_salt(platform_secret: bytes, isolation_domain: str) -> str:
    """64 hexadecimal digits, never empty: prefixes are shared only between requests of one isolation domain."""
    return _derive(platform_secret, "cache", isolation_domain).hex()


def sign(replica: bytes, body: bytes) -> bytes:
    """32-byte MAC of a registration's packed body under its replica's key."""
    return hmac.digest(replica, b"registration" + _SEPARATOR + body, hashlib.sha256)


def is_signed(replica: bytes, body: bytes, mac: bytes) -> bool:
    """Whether `mac` is that replica's signature of `body`; takes the same time either way."""
    return hmac.compare_digest(sign(replica, body), mac)


def new_api_key() -> str:
    """A fresh API key: the prefix and 256 random bits. Shown once; only `api_key_digest` is stored."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def api_key_digest(api_key: str) -> str:
    """SHA-256 in hexadecimal. Keys are random, so no salt or slow hash is needed."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest()
