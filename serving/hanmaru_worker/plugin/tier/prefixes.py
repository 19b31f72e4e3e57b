"""How long a prefix the tier can give back, from which pages of which pool it has. Pure; `storage` asks.

A global layer needs every page from the beginning. A sliding layer needs only the last pages of the prefix, into which
its window reaches, and those were written where a node of the radix tree ended: a prefix of 5 pages may be there while
those of 4 and 3 are not. Ranks keep what all of them can give, so every possible length is told, not only the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """What one pool has of a sequence's pages, in order."""

    found: Sequence[bool]
    trailing_pages: int | None = None
    """How many pages before a prefix's end must be there; None: all of them."""

    def reached(self) -> Iterator[bool]:
        """For each length from one page on, whether a prefix of so many pages is whole in this pool."""
        run = 0
        for pages, is_found in enumerate(self.found, start=1):
            run = run + 1 if is_found else 0
            yield run >= (pages if self.trailing_pages is None else min(pages, self.trailing_pages))


def restorable_pages(pools: Sequence[Pool]) -> list[int]:
    """Lengths in pages, ascending, of all prefixes that every pool can give."""
    lengths = zip(*(pool.reached() for pool in pools), strict=False)
    return [pages for pages, reached in enumerate(lengths, start=1) if all(reached)]


def longest(pool: Pool) -> int:
    """The longest prefix that this pool alone could give."""
    return max(restorable_pages([pool]), default=0)
