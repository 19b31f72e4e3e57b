"""Archives that are kept until their inputs change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hanmaru_images.kept import kept_archive


def test_an_archive_is_built_once_for_its_inputs_and_two_stay(tmp_path: Path) -> None:
    home = {"HANMARU_HOME": str(tmp_path)}
    built: list[str] = []

    def archive(digest: str) -> Path:
        def build(path: Path) -> None:
            built.append(digest)
            path.write_text(digest, encoding="utf-8")

        return kept_archive("one", digest * 16, build, home)

    for number, digest in enumerate("aabcda"):
        path = archive(digest)
        assert path.read_text(encoding="utf-8") == digest
        os.utime(path, (number, number))
    assert built == ["a", "b", "c", "d", "a"]
    assert len(list((tmp_path / "images").glob("one-*.tar"))) == 2


def test_a_build_that_fails_leaves_no_archive(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise RuntimeError("broken")

    home = {"HANMARU_HOME": str(tmp_path)}
    with pytest.raises(RuntimeError, match="broken"):
        kept_archive("one", "a" * 16, build, home)
    assert not list((tmp_path / "images").glob("*.tar"))
