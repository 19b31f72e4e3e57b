"""A registration is believed only as the replica it names signed it, and only for a while."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hanmaru_contracts import keys
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import (
    ARTIFACT_MAX_BYTES,
    Capabilities,
    Load,
    ModelArtifact,
    WorkerRecord,
    pack_artifact,
    seal,
    unpack_artifact,
    unseal,
)
from hypothesis import given
from hypothesis import strategies as st

SECRET = b"s" * 32
MODEL, REPLICA, OTHER = ModelId("default/k"), ReplicaId("k-0"), ReplicaId("k-1")
NOW_MS = 1_800_000_000_000


def _key(replica: ReplicaId = REPLICA, model: ModelId = MODEL) -> bytes:
    return keys.replica_key(SECRET, model, replica)


def _record(replica: ReplicaId = REPLICA, model: ModelId = MODEL, expires_at_ms: int = NOW_MS + 1) -> WorkerRecord:
    return WorkerRecord(
        model=model,
        replica=replica,
        route="k",
        pool="local",
        address="127.0.0.1:30000",
        artifact="0" * 64,
        capabilities=Capabilities(context_tokens=1, dtype="bfloat16", page_size=1, sliding_window_tokens=128),
        expires_at_ms=expires_at_ms,
    )


def _unseal(sealed: bytes, replica: ReplicaId = REPLICA, now_ms: int = NOW_MS) -> WorkerRecord | None:
    return unseal(sealed, SECRET, MODEL, replica, now_ms)


texts = st.text(max_size=20)
records = st.builds(
    WorkerRecord,
    model=st.just(MODEL),
    replica=st.just(REPLICA),
    route=texts,
    pool=texts,
    address=texts,
    artifact=texts,
    capabilities=st.builds(
        Capabilities,
        context_tokens=st.integers(1, 2**40),
        features=st.lists(texts, max_size=3).map(tuple),
        dtype=texts,
        page_size=st.integers(1, 2**20),
        sliding_window_tokens=st.none() | st.integers(1, 2**20),
    ),
    load=st.builds(
        Load,
        running_requests=st.integers(0, 2**40),
        queued_requests=st.integers(0, 2**40),
        kv_load_ratio=st.floats(0, 1),
    ),
    draining=st.booleans(),
    expires_at_ms=st.integers(NOW_MS + 1, 2**60),
)


@given(records)
def test_what_a_replica_sealed_is_what_gateways_read(record: WorkerRecord) -> None:
    assert _unseal(seal(record, _key())) == record


@given(st.data())
def test_a_record_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal(_record(), _key()))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    assert _unseal(bytes(sealed)) is None


@given(st.integers(0, 400), st.binary(max_size=20))
def test_a_record_cut_or_lengthened_is_refused(length: int, more: bytes) -> None:
    sealed = seal(_record(), _key())
    changed = sealed[:length] + more
    assert _unseal(changed) is None or changed == sealed


@given(st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    assert _unseal(garbage) is None


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deeply_nested_garbage_is_refused(depth: int) -> None:
    assert _unseal(b"\x91" * depth) is None
    assert _unseal(b"\x92" + b"\x91" * depth) is None


@pytest.mark.parametrize(
    ("sealed", "why"),
    [
        (seal(_record(), _key(OTHER)), "a neighbour signed in this replica's name"),
        (seal(_record(OTHER), _key(OTHER)), "a neighbour's own record, copied to this replica's place"),
        (seal(_record(OTHER), _key()), "this replica spoke for its neighbour"),
        (seal(_record(model=ModelId("default/l")), _key()), "this replica spoke for another model"),
        (seal(_record(), _key(model=ModelId("default/l"))), "a replica of that name of another model signed"),
        (seal(_record(), b""), "signed with an empty key"),
        (seal(_record(), keys.engine_api_key(_key()).encode()), "signed with what engines are shown"),
        (seal(_record(expires_at_ms=NOW_MS), _key()), "it has just expired"),
        (seal(_record(expires_at_ms=0), _key()), "it is old"),
    ],
)
def test_what_is_not_this_replicas_word_for_now_is_refused(sealed: bytes, why: str) -> None:
    assert _unseal(sealed) is None, why


def test_a_replayed_record_is_worth_nothing_after_its_time() -> None:
    sealed = seal(_record(expires_at_ms=NOW_MS + 60_000), _key())
    assert _unseal(sealed, now_ms=NOW_MS + 59_999) is not None
    assert _unseal(sealed, now_ms=NOW_MS + 60_000) is None


def test_gateways_with_another_secret_refuse_it() -> None:
    assert unseal(seal(_record(), _key()), b"t" * 32, MODEL, REPLICA, NOW_MS) is None


def _signed(body: bytes) -> bytes:
    return msgspec.msgpack.encode((body, keys.sign(_key(), body)))


@pytest.mark.parametrize(
    "change",
    [{"address": None}, {"expires_at_ms": "soon"}, {"load": {"running_requests": -1}}, {"capabilities": {}}],
)
def test_a_signed_record_that_is_malformed_is_refused(change: dict[str, object]) -> None:
    fields = msgspec.to_builtins(_record()) | change
    assert _unseal(_signed(msgspec.msgpack.encode(fields))) is None


def test_a_newer_workers_extra_fields_are_ignored() -> None:
    fields = msgspec.to_builtins(_record()) | {"temperature_celsius": 40}
    assert _unseal(_signed(msgspec.msgpack.encode(fields))) == _record()


def test_a_seal_shows_no_key() -> None:
    sealed = seal(_record(), _key())
    assert _key() not in sealed
    assert _key().hex().encode() not in sealed


ARTIFACT = ModelArtifact(
    tokenizer=b"{}",
    chat_template="{{ messages }}",
    special_tokens={"eos_token": "</s>"},
    generation_defaults={"temperature": 1.0, "eos_token_id": [1, 2], "top_k": 5, "do_sample": True, "top_p": None},
)


def test_an_artifact_is_read_back_by_its_digest() -> None:
    digest, packed = pack_artifact(ARTIFACT)
    assert digest == hashlib.sha256(packed).hexdigest()
    assert unpack_artifact(packed, digest) == ARTIFACT


def test_an_artifact_that_is_not_what_its_digest_names_is_refused() -> None:
    digest, packed = pack_artifact(ARTIFACT)
    with pytest.raises(ValueError, match="not the one"):
        unpack_artifact(packed + b"x", digest)
    for garbage in (b"", b"\x91" * 1000, b"\xc0"):
        with pytest.raises(ValueError):  # noqa: PT011 - msgspec's own kinds
            unpack_artifact(garbage, hashlib.sha256(garbage).hexdigest())


def test_an_artifact_beyond_the_bound_is_neither_made_nor_read() -> None:
    with pytest.raises(ValueError, match="at most"):
        pack_artifact(ModelArtifact(tokenizer=bytes(ARTIFACT_MAX_BYTES), chat_template=""))
    huge = bytes(ARTIFACT_MAX_BYTES + 1)
    with pytest.raises(ValueError, match="not the one"):
        unpack_artifact(huge, hashlib.sha256(huge).hexdigest())
