from __future__ import annotations

import pytest
from hanmaru_worker.plugin.tier.prefixes import Pool, longest, restorable_pages
from hypothesis import given
from hypothesis import strategies as st

CASES = [
    # global pages, sliding pages, window in pages, restorable lengths
    ("", "", 2, []),
    ("1111", "0011", 2, [4]),
    ("1111", "1111", 2, [1, 2, 3, 4]),
    ("1101", "1111", 2, [1, 2]),
    ("0111", "1111", 2, []),
    ("11111111", "01100011", 2, [3, 8]),
    ("1111", "0000", 1, []),
    ("1111", "1000", 3, [1]),
]


@pytest.mark.parametrize(("kv", "sliding", "window_pages", "expected"), CASES)
def test_a_prefix_needs_all_global_pages_and_its_windows_sliding_ones(
    kv: str, sliding: str, window_pages: int, expected: list[int]
) -> None:
    assert restorable_pages([pool(kv), pool(sliding, window_pages)]) == expected


def test_a_sidecar_of_the_global_pages_needs_all_of_its_own() -> None:
    assert restorable_pages([pool("111"), pool("101")]) == [1]
    assert longest(pool("101")) == 1


@given(found=st.lists(st.booleans(), max_size=40), window_pages=st.integers(1, 5))
def test_every_length_told_is_whole_and_every_other_is_not(found: list[bool], window_pages: int) -> None:
    lengths = restorable_pages([Pool([True] * len(found)), Pool(found, window_pages)])
    for pages in range(1, len(found) + 1):
        assert (pages in lengths) == all(found[max(0, pages - window_pages) : pages])


@given(found=st.lists(st.booleans(), max_size=40))
def test_a_pool_that_needs_all_pages_reaches_to_its_first_gap(found: list[bool]) -> None:
    assert longest(Pool(found)) == [*found, False].index(False)


def pool(found: str, trailing_pages: int | None = None) -> Pool:
    return Pool([letter == "1" for letter in found], trailing_pages)
