"""Kubernetes quantities (`500m`, `80Gi`, `1e3`) as numbers.

`observe` and whoever reads a pod template use it; rounding is theirs.
"""

from __future__ import annotations

from hanmaru_contracts.errors import ErrorCode, HanmaruError

_SUFFIXES = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}


def parse_quantity(text: str | float) -> float:
    """The number of units (cores, bytes, devices). Raises HanmaruError (INVALID_REQUEST) for what is no quantity."""
    if isinstance(text, int | float):
        return float(text)
    number = text.rstrip("numkKMGTPEi")
    try:
        return float(number) * _SUFFIXES[text[len(number) :]]
    except (KeyError, ValueError):
        raise HanmaruError(
            ErrorCode.INVALID_REQUEST, f"{text!r} is no quantity; write for instance 4, 500m or 80Gi"
        ) from None
