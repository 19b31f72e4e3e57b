"""PromQL as Prometheus itself reads it: its parser, built from its Go module, in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import msgspec

from hanmaru_testing.go_programs import ROOT, GoProgram, built

_PARSER = GoProgram("promql", ROOT / "tests/cluster/programs/prometheus", ".")


class Selector(msgspec.Struct, frozen=True):
    """One selection of a metric's series."""

    metric: str
    labels: list[str]
    """Those it selects by."""


class Parsed(msgspec.Struct, frozen=True):
    """One expression."""

    error: str
    """The parser's complaint; empty: it is right."""
    selectors: list[Selector]
    grouping: list[str]
    """Labels that sums and the like are by."""


def parse(expressions: Sequence[str]) -> list[Parsed]:
    """What Prometheus makes of each."""
    lines = b"\n".join(msgspec.json.encode(expression) for expression in expressions)
    done = subprocess.run([built(_PARSER)], input=lines, capture_output=True, timeout=60, check=True)
    return [msgspec.json.decode(line, type=Parsed) for line in done.stdout.splitlines()]
