"""The event reader: however the bytes are cut, the same events come out, and nothing in generated text fools it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hanmaru_gateway.dispatch.sse import EVENT_MAX_BYTES, DamagedStreamError, EventReader, read_answer
from hypothesis import given
from hypothesis import strategies as st

DONE = b"data: [DONE]\n\n"


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False).encode() + b"\n\n"


def usage_chunk(spaced: bool = False, **more: Any) -> bytes:
    body = {"id": "x", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, **more}}
    return b"data: " + json.dumps(body, separators=None if spaced else (",", ":")).encode() + b"\n\n"


def read_all(reader: EventReader, stream: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return b"".join(reader.feed(stream[a:b]) for a, b in itertools.pairwise(edges))


texts = st.lists(st.text() | st.sampled_from(['"usage":{', '{"error"', "data: [DONE]", "\n\ndata: {}\n\n"]), max_size=6)


@given(texts, st.lists(st.integers(0, 10_000), max_size=12), st.booleans(), st.booleans())
def test_any_cutting_gives_the_same_events(said: list[str], cuts: list[int], show: bool, spaced: bool) -> None:
    content = b"".join(chunk(text) for text in said)
    usage = usage_chunk(spaced)
    reader = EventReader(show_usage=show)
    passed = read_all(reader, content + usage + DONE, cuts)
    assert passed == content + (usage if show else b"") + DONE
    assert reader.has_ended
    assert not reader.has_failed
    assert reader.usage is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (7, 3)


@given(texts, st.lists(st.integers(0, 10_000), max_size=12))
def test_an_engines_error_event_and_all_behind_it_is_withheld(said: list[str], cuts: list[int]) -> None:
    content = b"".join(chunk(text) for text in said)
    error = b'data: {"error": {"message": "secret"}}\n\n'
    reader = EventReader(show_usage=True)
    passed = read_all(reader, content + error + chunk("after"), cuts)
    assert passed == content
    assert reader.has_failed


@pytest.mark.parametrize("spaced", [False, True])
def test_usage_null_in_content_chunks_is_no_usage(spaced: bool) -> None:
    body = {"choices": [{"text": "a"}], "usage": None}
    event = b"data: " + json.dumps(body, separators=None if spaced else (",", ":")).encode() + b"\n\n"
    reader = EventReader(show_usage=False)
    assert reader.feed(event) == event
    assert reader.usage is None


def test_a_chunk_with_content_and_usage_passes() -> None:
    event = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    reader = EventReader(show_usage=False)
    assert reader.feed(event) == event
    assert reader.usage is not None


def test_cached_tokens_are_read() -> None:
    reader = EventReader(show_usage=False)
    reader.feed(usage_chunk(prompt_tokens_details={"cached_tokens": 5}))
    assert reader.usage is not None
    assert reader.usage.cached_tokens == 5


def test_an_endless_event_is_damage() -> None:
    reader = EventReader(show_usage=False)
    assert reader.feed(b"x" * EVENT_MAX_BYTES) == b""
    with pytest.raises(DamagedStreamError):
        reader.feed(b"x")


def test_usage_that_is_no_json_is_damage() -> None:
    with pytest.raises(DamagedStreamError):
        EventReader(show_usage=False).feed(b'data: {"usage":{ nonsense\n\n')


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"usage":3}', b"[" * 100_000])
def test_what_is_no_answer_is_none(body: bytes) -> None:
    assert read_answer(body) is None
