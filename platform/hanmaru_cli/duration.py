"""A length of time on a command line, written as for kubectl: `90s`, `5m`, `1h30m`; a bare number counts seconds.

`main` gives `seconds_of` to click as an option's type.
"""

from __future__ import annotations

import re

import click

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def seconds_of(text: str) -> float:
    """Seconds. Raises click.BadParameter."""
    with_unit = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text
    if not _WHOLE.fullmatch(with_unit):
        raise click.BadParameter(f"{text!r} is no length of time; write it as 90s, 5m or 1h30m")
    return sum(float(count) * _UNIT_S[unit] for count, unit in _PART.findall(with_unit))


def duration_words(seconds: float) -> str:
    """Such as `1h30m`, `5m`, `0.5s`."""
    minutes, rest_s = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{rest_s:g}s" if rest_s else ""]
    return "".join(parts) or "0s"
