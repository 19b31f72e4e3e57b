"""A key is shown once, with the hash that a tenants file holds."""

from __future__ import annotations

import io

import pytest
from hanmaru_cli.key import main
from hanmaru_contracts.keys import api_key_digest


def test_a_new_key_comes_with_its_own_hash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new"]) == 0
    key_line, hash_line = capsys.readouterr().out.splitlines()
    assert hash_line.split()[1] == api_key_digest(key_line.split()[1])


def test_every_new_key_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        main(["new"])
    first, _, second, _ = capsys.readouterr().out.splitlines()
    assert first != second


def test_a_key_one_has_is_hashed_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hmk_x\n"))
    assert main(["hash"]) == 0
    assert capsys.readouterr().out.strip() == api_key_digest("hmk_x")


def test_no_key_on_standard_input_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["hash"]) == 2
    assert "standard input is empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["old"], ["hash", "hmk_x"]])
def test_a_key_is_never_taken_from_the_command_line(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
