"""`hanmaru model-facts` writes one line whatever it finds, and its status says whether to try again."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hanmaru_cli.main import cli
from hanmaru_operator.inspect_model import Report, read_report

TINY = Path(__file__).parents[2] / "checkpoints" / "tiny-k-exaone"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["model-facts", *map(str, arguments)])


def test_facts_are_printed_as_one_line() -> None:
    result = run("--checkpoint", TINY)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) == 1
    facts = read_report(result.output).facts
    assert facts is not None
    assert facts.architecture == "ExaoneMoEForCausalLM"


def test_the_line_goes_where_kubernetes_looks_for_it(tmp_path: Path) -> None:
    result = run(f"--checkpoint={TINY}", f"--out={tmp_path / 'termination-log'}")
    assert (result.exit_code, result.output) == (0, "")
    text = (tmp_path / "termination-log").read_text()
    assert len(text) <= 4096
    assert read_report(text).facts is not None


def test_a_broken_checkpoint_is_status_2_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    result = run("--checkpoint", tmp_path)
    assert result.exit_code == 2
    assert "not JSON" in read_report(result.output).error


def test_a_hub_that_is_away_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        result = run("--repo", "a/b", "--endpoint", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert result.exit_code == 1
    report = read_report(result.output)
    assert report == Report(None, "", report.error)
    assert "cannot be read" in report.error


def test_an_unreadable_token_is_reported_in_the_line_too(tmp_path: Path) -> None:
    result = run("--repo", "a/b", "--token-file", tmp_path / "none")
    assert result.exit_code == 2
    assert "token's file" in read_report(result.output).error


@pytest.mark.parametrize("arguments", [[], ["--checkpoint", "x", "--repo", "a/b"]])
def test_one_source_must_be_named(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "either --checkpoint or --repo" in result.output
