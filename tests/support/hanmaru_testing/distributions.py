"""Whether drawn tokens fit the distribution they should have: Pearson's chi-square, with torch alone.

Tests of samplers use it. Each says the chance of a false alarm it accepts, and shows by a control that it would have
noticed a broken sampler.
"""

from __future__ import annotations

import torch


def chi_square_p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Chance of counts at least as far from `expected`, if they were drawn from it.

    Both are [cells]; `expected` is scaled to the counts' sum, holds no zero, and each cell should expect five or more.
    """
    wanted = expected.double() / expected.sum() * counts.sum()
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))


def likeliness_positions(
    rows: torch.Tensor, drawn: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Where in 0..1 each drawn token lies when its row's tokens are laid out from the likeliest to the least likely.

    `rows` is [draws, vocabulary] of probabilities, `drawn` [draws]. Draws from the rows give independent uniform
    values, whatever the rows are, so that draws in different contexts can be judged together; a sampler that favours
    likely tokens gives too many small ones.
    """
    own = rows.gather(1, drawn[:, None])
    above = torch.where(rows > own, rows, 0.0).double().sum(1)
    # Tokens as likely as the drawn one share a stretch: a place in it is drawn.
    tied = torch.where(rows == own, rows, 0.0).double().sum(1)
    return above + tied * torch.rand(len(drawn), generator=generator, dtype=torch.float64)


def uniform_p_value(positions: torch.Tensor, cells: int = 20) -> float:
    """Chance of such values if they were uniform over 0..1, by equal cells."""
    counts = torch.histc(positions.clamp(0, 1), bins=cells, min=0, max=1)
    return chi_square_p_value(counts, torch.ones(cells))
