"""One secret, and everything derived from it by a fixed formula that keeps every use apart."""

from __future__ import annotations

import base64
import hashlib
import hmac

from hanmaru_contracts import keys
from hanmaru_contracts.names import API_KEY_PREFIX, ModelId, ReplicaId
from hypothesis import given
from hypothesis import strategies as st

SECRET = b"s" * 32
MODEL, REPLICA = ModelId("default/k"), ReplicaId("k-0")
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def test_derivations_are_what_other_versions_expect() -> None:
    # Written out, so that a changed formula is noticed: workers and gateways of two releases meet.
    replica = keys.replica_key(SECRET, MODEL, REPLICA)
    assert replica == _hmac(SECRET, b"replica\0default/k\0k-0")
    assert keys.engine_api_key(replica) == _hmac(replica, b"engine").hex()
    assert keys.cache_salt(SECRET, "own:a") == _hmac(SECRET, b"cache\0own:a").hex()
    assert keys.sign(replica, b"body") == _hmac(replica, b"registration\0body")


@given(st.lists(st.tuples(names, names), unique=True, min_size=2, max_size=5))
def test_each_replica_of_each_model_has_a_key_of_its_own(pairs: list[tuple[str, str]]) -> None:
    derived = {keys.replica_key(SECRET, ModelId(model), ReplicaId(replica)) for model, replica in pairs}
    assert len(derived) == len(pairs)


@given(st.text(max_size=30))
def test_no_isolation_domain_has_an_empty_salt(domain: str) -> None:
    # An empty salt is the engine's shared cache.
    assert len(keys.cache_salt(SECRET, domain.encode("utf-8", "replace").decode())) == 64


def test_another_secret_gives_other_keys() -> None:
    assert keys.replica_key(b"t" * 32, MODEL, REPLICA) != keys.replica_key(SECRET, MODEL, REPLICA)
    assert keys.cache_salt(b"t" * 32, "own:a") != keys.cache_salt(SECRET, "own:a")


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_signature_is_good_for_its_body_and_its_key_alone(body: bytes, other: bytes) -> None:
    replica = keys.replica_key(SECRET, MODEL, REPLICA)
    stranger = keys.replica_key(SECRET, MODEL, ReplicaId("k-1"))
    mac = keys.sign(replica, body)
    assert keys.is_signed(replica, body, mac)
    assert not keys.is_signed(stranger, body, mac)
    assert keys.is_signed(replica, other, mac) == (other == body)
    assert not keys.is_signed(replica, body, mac[:-1])
    assert not keys.is_signed(replica, body, b"")


def test_api_keys_are_recognisable_and_hold_256_random_bits() -> None:
    made = {keys.new_api_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert key.startswith(API_KEY_PREFIX)
        assert len(base64.urlsafe_b64decode(key.removeprefix(API_KEY_PREFIX) + "=")) == 32


def test_the_digest_of_a_key_is_its_sha256() -> None:
    assert keys.api_key_digest("hmk_x") == hashlib.sha256(b"hmk_x").hexdigest()
    assert len(keys.api_key_digest("\udcff")) == 64, "headers can hold bytes that are no text"
