from __future__ import annotations

import json

import click
import pytest
from hanmaru_cli.doctor.finding import Finding, Mark, ok, some
from hanmaru_cli.doctor.report import MOST_WELL, as_json, as_lines

FINDINGS = [
    Finding(Mark.OK, "clock", "", "within 5 s"),
    Finding(Mark.FAIL, "devices", "ap/a100", "7 of 8", "8", "repair it"),
    Finding(Mark.UNSEEN, "pods", "", "cannot look"),
]


def test_each_finding_is_one_line_with_what_was_seen_expected_and_to_do() -> None:
    lines = [click.unstyle(line) for line in as_lines("cluster x", FINDINGS)]
    assert lines == [
        "cluster x",
        "ok    clock    within 5 s",
        "FAIL  devices  ap/a100: 7 of 8; expected 8; repair it",
        "?     pods     cannot look",
        "1 to mend, 1 not seen.",
    ]


def test_what_others_wrote_into_objects_cannot_move_the_cursor() -> None:
    nasty = [Finding(Mark.FAIL, "pods", "pod/x", "bad\x1b[2J\nok    fake line\r")]
    lines = [click.unstyle(line) for line in as_lines("x", nasty)]
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_thousand_models_that_are_well_do_not_hide_one_that_is_not() -> None:
    many = [ok("model", f"{n}") for n in range(1000)]
    lines = [click.unstyle(line) for line in as_lines("x", [*many, Finding(Mark.FAIL, "model", "md/x", "broken")])]
    assert len(lines) == MOST_WELL + 4
    assert "and 990 more are well" in lines[-3]
    assert "broken" in lines[-2]


def test_json_is_one_object_for_programs() -> None:
    said = json.loads(as_json("cluster x", FINDINGS))
    assert (said["looksAt"], said["healthy"]) == ("cluster x", False)
    assert [finding["mark"] for finding in said["findings"]] == ["ok", "fail", "unseen"]
    assert said["findings"][1]["toDo"] == "repair it"


@pytest.mark.parametrize(
    ("names", "said"), [([], ""), (["b", "a", "a"], "a, b"), (list("gfedcba"), "a, b, c, d, e and 2 more")]
)
def test_many_names_are_counted(names: list[str], said: str) -> None:
    assert some(names) == said
