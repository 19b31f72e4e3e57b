"""One thing the doctor has to say. The checks make them, `report` prints them; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing: a next step, or a thing that nobody can see from here."""
    WARN = "warn"
    """It works, or will for a while; look at it."""
    FAIL = "FAIL"
    """Something does not serve until this is mended."""
    UNSEEN = "?"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    mark: Mark
    check: str
    """Which check, one word for programs."""
    subject: str
    """What it is about, as kubectl names it (`node/a`, `md/k-exaone -n models`); empty: the whole."""
    seen: str
    """What was found."""
    expected: str = ""
    """What should have been found. Empty: the same."""
    to_do: str = ""
    """What to do about it. Empty: nothing."""


def ok(check: str, seen: str, subject: str = "") -> Finding:
    """All is well there."""
    return Finding(Mark.OK, check, subject, seen)


def exit_status(findings: Iterable[Finding]) -> int:
    """1 when anything fails. What could not be looked at is no failure: it may be well."""
    return int(any(finding.mark is Mark.FAIL for finding in findings))


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    ordered = sorted(set(names))
    more = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {more} more" if more > 0 else "")
