"""The corpus keeps sentences for people, pairs them by their place, and comes from pinned wheels only."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
from hanmaru_checkpoint.corpus import SOURCES, Page, Phrase, read_pages

SENTENCE = "Set up the lamp in the hall."
KOREAN = "복도의 전등을 설정해 주세요."


def wheel(folder: Path, files: dict[str, object]) -> Path:
    path = folder / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, json.dumps(content))
    return path


def test_both_languages_are_paired_by_their_place_in_the_file(tmp_path: Path) -> None:
    made = wheel(
        tmp_path,
        {
            "ha/components/hall_lamp/translations/en.json": {
                "step": {"a": SENTENCE, "b": "Only English has this one."}
            },
            "ha/components/hall_lamp/translations/ko.json": {"step": {"a": KOREAN}},
            "ha/components/hall_lamp/strings.json": {"step": {"a": "Never read, because it is elsewhere."}},
        },
    )
    phrases = (Phrase(SENTENCE, KOREAN), Phrase("Only English has this one.", ""))
    assert read_pages([made]) == [Page("hall lamp", phrases)]


def test_hashes_in_file_names_are_no_obstacle(tmp_path: Path) -> None:
    files = {
        "f/static/translations/config/en-0a1.json": {"a": SENTENCE},
        "f/static/translations/config/ko-9f2.json": {"a": KOREAN},
    }
    assert read_pages([wheel(tmp_path, files)]) == [Page("config", (Phrase(SENTENCE, KOREAN),))]


def test_a_phrase_is_kept_where_it_is_first_seen(tmp_path: Path) -> None:
    files = {f"ha/{name}/translations/en.json": {"x": SENTENCE, "y": SENTENCE} for name in ("b", "a")}
    assert read_pages([wheel(tmp_path, files)]) == [Page("a", (Phrase(SENTENCE, ""),))]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Battery level", ""),
        ("Go to https://example.org and follow the steps there.", ""),
        ("The device {name} could not be found at all.", ""),
        ("[%key:common::config_flow::error::cannot_connect%] and so on here", ""),
        ("Press <b>the button</b> on the hub to go on.", ""),
        (
            "Read the **first** page of\nthe [manual](https://example.org) with `care`.",
            "Read the first page of the manual with care.",
        ),
    ],
)
def test_only_plain_sentences_are_kept(tmp_path: Path, text: str, kept: str) -> None:
    pages = read_pages([wheel(tmp_path, {"ha/a/translations/en.json": {"x": text}})])
    assert [phrase.english for page in pages for phrase in page.phrases] == ([kept] if kept else [])


def test_every_source_is_pinned_by_hash_and_permissively_licensed() -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", source.sha256) for source in SOURCES)
    assert {source.licence for source in SOURCES} <= {"Apache-2.0", "MIT", "BSD-3-Clause"}
