from __future__ import annotations

import pytest
from hanmaru_worker.plugin.tier.sealing import OVERHEAD_BYTES, domain_digest, page_key, seal, unseal
from hypothesis import given
from hypothesis import strategies as st

TIER_KEY, CONTENT, NAME = b"k" * 32, "c" * 32, "hm:{tier:default/k:3}:page:1:name"
KEY = page_key(TIER_KEY, CONTENT, domain_digest(None, "salt"))
PAYLOAD = b"keys and values"


@given(payload=st.binary(max_size=4096), name=st.text(max_size=200))
def test_what_was_sealed_is_given_back(payload: bytes, name: str) -> None:
    frame = seal(KEY, name, payload)
    assert len(frame) == len(payload) + OVERHEAD_BYTES
    found = unseal(KEY, name, frame, len(payload))
    assert found is not None
    assert bytes(found) == payload


@given(data=st.data(), payload=st.binary(min_size=1, max_size=512))
def test_a_frame_with_any_other_byte_is_refused(data: st.DataObject, payload: bytes) -> None:
    frame = bytearray(seal(KEY, NAME, payload))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    assert unseal(KEY, NAME, bytes(frame), len(payload)) is None


@given(frame=st.binary(max_size=200), payload_bytes=st.integers(0, 200))
def test_made_up_bytes_are_refused(frame: bytes, payload_bytes: int) -> None:
    assert unseal(KEY, NAME, frame, payload_bytes) is None


@given(cut=st.integers(1, OVERHEAD_BYTES + len(PAYLOAD)), more=st.binary(min_size=1, max_size=64))
def test_a_frame_that_was_cut_or_continued_is_refused(cut: int, more: bytes) -> None:
    frame = seal(KEY, NAME, PAYLOAD)
    for changed in (frame[:-cut], frame[cut:], frame + more, more + frame):
        for size in (len(PAYLOAD), len(changed) - OVERHEAD_BYTES):
            assert size < 0 or unseal(KEY, NAME, changed, size) is None


OTHERS = {
    "name": (KEY, NAME + "0"),
    "tier key": (page_key(b"l" * 32, CONTENT, domain_digest(None, "salt")), NAME),
    "weights or flags": (page_key(TIER_KEY, "d" * 32, domain_digest(None, "salt")), NAME),
    "isolation domain": (page_key(TIER_KEY, CONTENT, domain_digest(None, "pepper")), NAME),
    "adapter": (page_key(TIER_KEY, CONTENT, domain_digest("adapter", "salt")), NAME),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_page_of_another_is_refused(what: str) -> None:
    key, name = OTHERS[what]
    assert unseal(KEY, NAME, seal(key, name, PAYLOAD), len(PAYLOAD)) is None


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_domains_differ_where_adapter_or_salt_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (domain_digest(*one) == domain_digest(*other)) == (one == other)
