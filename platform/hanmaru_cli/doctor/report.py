"""Findings as lines for people, or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import click
import msgspec

from hanmaru_cli.doctor.finding import Finding, Mark, exit_status, ok

_COLOURS = {Mark.OK: "green", Mark.NOTE: "cyan", Mark.WARN: "yellow", Mark.FAIL: "red", Mark.UNSEEN: "magenta"}
_MARK_CHARS = 4
MOST_WELL = 10
"""Lines of one check that say that all is well; the others are counted. Whatever is not well is always said."""


def show(title: str, findings: Sequence[Finding], say: Callable[[str], None], *, is_json: bool) -> int:
    """Say them all. The exit status."""
    if is_json:
        say(as_json(title, findings))
    else:
        for line in as_lines(title, findings):
            say(line)
    return exit_status(findings)


def as_lines(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    """A title, one line a finding, and a sum. Colours are taken off again where nobody sees them."""
    yield title
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in _with_few_well(findings):
        mark = click.style(f"{finding.mark.value:<{_MARK_CHARS}}", fg=_COLOURS[finding.mark])
        yield f"{mark}  {finding.check:<{width}}  {_sentence(finding)}"
    yield _sum(findings)


def as_json(title: str, findings: Sequence[Finding]) -> str:
    """One object; `mark` is ok, note, warn, fail or unseen."""
    listed = [
        {
            "mark": finding.mark.name.lower(),
            "check": finding.check,
            "subject": finding.subject,
            "seen": finding.seen,
            "expected": finding.expected,
            "toDo": finding.to_do,
        }
        for finding in findings
    ]
    whole = {"looksAt": title, "healthy": not exit_status(findings), "findings": listed}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def _with_few_well(findings: Sequence[Finding]) -> Iterator[Finding]:
    well = Counter(finding.check for finding in findings if finding.mark is Mark.OK)
    said: Counter[str] = Counter()
    for finding in findings:
        if finding.mark is not Mark.OK:
            yield finding
            continue
        said[finding.check] += 1
        if said[finding.check] <= MOST_WELL:
            yield finding
        elif said[finding.check] == MOST_WELL + 1:
            yield ok(finding.check, f"and {well[finding.check] - MOST_WELL} more are well")


def _sentence(finding: Finding) -> str:
    subject = f"{finding.subject}: " if finding.subject else ""
    expected = f"; expected {finding.expected}" if finding.expected else ""
    to_do = f"; {finding.to_do}" if finding.to_do else ""
    # One line, whatever an object's message holds; no control characters of others reach the terminal.
    words = f"{subject}{finding.seen}{expected}{to_do}"
    return "".join(char if char.isprintable() else " " for char in words)


def _sum(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.mark for finding in findings)
    if counts[Mark.FAIL]:
        verdict = f"{counts[Mark.FAIL]} to mend"
    else:
        verdict = "nothing to mend" + (" that could be seen" if counts[Mark.UNSEEN] else "")
    others = [f"{counts[mark]} {word}" for mark, word in ((Mark.WARN, "to look at"), (Mark.UNSEEN, "not seen"))
              if counts[mark]]  # fmt: skip
    return ", ".join([verdict, *others]) + "."
