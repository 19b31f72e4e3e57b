from __future__ import annotations

import dataclasses
import re

import pytest
from hanmaru_contracts.names import ModelId
from hanmaru_worker.plugin.tier.naming import Naming, PageName, PageShape, Ranks
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

SHAPE = PageShape("kv", "bfloat16", 64, "page_first", 12, 1, 128, 128, 393216)
NAMING = Naming(ModelId("default/k"), "0" * 32, Ranks(0, 8), SHAPE)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
ANOTHER = {
    "model": {"model": ModelId("default/l")},
    "namespace": {"model": ModelId("other/k")},
    "weights or flags": {"content": "1" * 32},
    "rank": {"ranks": Ranks(1, 8)},
    "number of ranks": {"ranks": Ranks(0, 4)},
    "pipeline stage": {"ranks": Ranks(0, 8, 1, 2)},
    "part of the context": {"ranks": Ranks(0, 8, 0, 1, 1, 2)},
    **{
        field: {"shape": dataclasses.replace(SHAPE, **{field: value})}
        for field, value in {
            "pool": "swa",
            "dtype": "float16",
            "page_tokens": 32,
            "layout": "layer_first",
            "layers": 13,
            "heads": 2,
            "key_dim": 64,
            "value_dim": 64,
            "payload_bytes": 1,
        }.items()
    },
}


@pytest.mark.parametrize("what", ANOTHER)
def test_a_page_has_another_name_with_another(what: str) -> None:
    page_hash = "ab" * 32
    assert dataclasses.replace(NAMING, **ANOTHER[what]).page(page_hash).entry != NAMING.page(page_hash).entry


def test_every_field_of_a_shape_is_in_the_table_above() -> None:
    assert {field.name for field in dataclasses.fields(PageShape)} <= set(ANOTHER)


@given(one=HASHES, other=HASHES)
def test_two_hashes_have_two_names(one: str, other: str) -> None:
    assert (NAMING.page(one) == NAMING.page(other)) == (one == other)


@given(HASHES)
def test_the_keys_of_a_page_share_a_slot_and_the_roles_pattern(page_hash: str) -> None:
    name: PageName = NAMING.page(page_hash)
    keys = (name.entry, name.index, name.used)
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(re.fullmatch(r"hm:\{tier:[^{}]*\}:[^{}]*", key) for key in keys)


@given(st.text())
def test_what_is_no_hash_of_a_page_has_no_name(text: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            NAMING.page(text)
