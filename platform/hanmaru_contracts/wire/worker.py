"""What a worker tells gateways about itself: a signed record under a lease, and the model's artifact.

The supervisor writes both to Redis every second; gateways believe a record only when its signature is that of the
replica it names. Times are Unix milliseconds.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from hanmaru_contracts import keys
from hanmaru_contracts.names import ModelId, ReplicaId

LEASE_MS = 5_000
"""Life of a lease after its last renewal."""
RENEW_INTERVAL_S = 1.0
SIGNATURE_LIFE_MS = 60_000
"""How far ahead `expires_at_ms` lies: long enough for clocks that differ, short enough to make a copied record useless.
The lease itself is Redis's, whose clock is one."""
ARTIFACT_MAX_BYTES = 32 * 1024 * 1024
ARTIFACT_LIFE_S = 24 * 3600
"""Artifacts outlive their workers by so much; workers renew them."""

Natural = Annotated[int, msgspec.Meta(ge=0)]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker can serve. Pools differ in capability, not only in speed."""

    context_tokens: Annotated[int, msgspec.Meta(gt=0)]
    """Longest prompt and output together."""
    features: tuple[str, ...] = ()
    """For instance `mtp`, `hybrid-kv`, `expert-parallel`, `tools`, `reasoning`."""
    dtype: str
    page_size: Annotated[int, msgspec.Meta(gt=0)]
    sliding_window_tokens: int | None
    """Tokens a sliding layer attends to, itself included; None when every layer is global."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the engine is, as it said itself within the last renewal."""

    running_requests: Natural = 0
    queued_requests: Natural = 0
    kv_load_ratio: float = 0.0
    """Fullest of the engine's KV pools, 0-1."""


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as gateways see it."""

    model: ModelId
    replica: ReplicaId
    route: str
    """What callers put in `model`, and the name the engine serves under."""
    pool: str
    address: str
    """`host:port` of the engine's HTTP server."""
    artifact: str
    """SHA-256 of the packed `ModelArtifact`."""
    capabilities: Capabilities
    load: Load = Load()
    draining: bool = False
    """True: it finishes what it has and takes nothing new."""
    expires_at_ms: int
    """The signature is worth nothing after this."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    body: bytes
    mac: bytes


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(_Envelope)
_records = msgspec.msgpack.Decoder(WorkerRecord)


def seal(record: WorkerRecord, replica_key: bytes) -> bytes:
    """Packed record with its signature."""
    body = _encoder.encode(record)
    return _encoder.encode(_Envelope(body, keys.sign(replica_key, body)))


def unseal(
    sealed: bytes, platform_secret: bytes, model: ModelId, replica: ReplicaId, now_ms: int
) -> WorkerRecord | None:
    """The record that `replica` of `model` signed, or None when it is forged, damaged, somebody else's or expired."""
    try:
        envelope = _envelopes.decode(sealed)
        if not keys.is_signed(keys.replica_key(platform_secret, model, replica), envelope.body, envelope.mac):
            return None
        record = _records.decode(envelope.body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    if (record.model, record.replica) != (model, replica) or record.expires_at_ms <= now_ms:
        return None
    return record


class ModelArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway needs to count and render for a model; published once per content."""

    tokenizer: bytes
    """`tokenizer.json`."""
    chat_template: str
    """Jinja source; rendered in jinja2's sandbox."""
    special_tokens: dict[str, str] = {}
    """`bos_token`, `eos_token`, … as chat templates name them."""
    generation_defaults: dict[str, float | int | list[int] | bool | None] = {}
    """`generation_config.json`: sampling defaults and stop token ids."""


_artifacts = msgspec.msgpack.Decoder(ModelArtifact)


def pack_artifact(artifact: ModelArtifact) -> tuple[str, bytes]:
    """(digest, packed bytes). The digest is what records name. Raises ValueError above `ARTIFACT_MAX_BYTES`."""
    packed = _encoder.encode(artifact)
    if len(packed) > ARTIFACT_MAX_BYTES:
        raise ValueError(f"tokenizer and template take {len(packed)} bytes; at most {ARTIFACT_MAX_BYTES} are published")
    return hashlib.sha256(packed).hexdigest(), packed


def unpack_artifact(packed: bytes, digest: str) -> ModelArtifact:
    """The artifact of that digest. Raises ValueError when the bytes are not those the digest names."""
    if len(packed) > ARTIFACT_MAX_BYTES or hashlib.sha256(packed).hexdigest() != digest:
        raise ValueError("the published artifact is not the one its digest names")
    return _artifacts.decode(packed)
