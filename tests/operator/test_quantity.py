"""Kubernetes quantities as numbers."""

from __future__ import annotations

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8.0),
        ("500m", 0.5),
        ("1.5", 1.5),
        ("80Gi", 80 * 2**30),
        ("1k", 1000),
        ("2M", 2e6),
        ("1e3", 1000),
        ("1E", 1e18),
        ("100n", 1e-7),
        (3, 3.0),
        ("-1", -1.0),
    ],
)
def test_quantities_are_read(text: str | int, number: float) -> None:
    assert parse_quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "Gi", "8 GB", "8GiB", "eight", "1iG"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(HanmaruError, match="80Gi"):
        parse_quantity(text)
