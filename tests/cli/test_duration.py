from __future__ import annotations

import click
import pytest
from hanmaru_cli.duration import duration_words, seconds_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_lengths_of_time_are_read_as_kubectl_reads_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 m", "1d", "m"])
def test_other_words_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write it as 90s, 5m or 1h30m"):
        seconds_of(text)


@given(st.integers(0, 10**6))
def test_what_is_said_is_what_was_meant(seconds: int) -> None:
    assert seconds_of(duration_words(float(seconds))) == seconds
