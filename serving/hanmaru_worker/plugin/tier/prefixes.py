"""How long a prefix the tier can give back, from which pages of which pool it has. Pure; `storage` asks.

A global layer needs every page from the beginning. A sliding layer needs only the last pages of the prefix, into which
its window reaches, and those were written where a node of the radix tree ended: a prefix of 5 pages may be there while
those of 4 and 3 are not. Ranks keep what all of them can give, so every possible length is told, not only the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """What one pool has of a sequence's pages, in order."""

    found: Sequence[bool]
    trailing_pages: int | None = None
    """How many pages before a prefix's end must be there; None: all of them."""

    def reaches(self, pages: int) -> bool:
        """Whether a prefix of so many pages is whole in this pool."""
        first = 0 if self.trailing_pages is None else max(0, pages - self.trailing_pages)
        return all(self.found[first:pages])


def restorable_pages(pools: Sequence[Pool]) -> list[int]:
    """Lengths in pages, ascending, of all prefixes that every pool can give."""
    return [
        pages for pages in range(1, min(len(pool.found) for pool in pools) + 1) if all(p.reaches(pages) for p in pools)
    ]


def longest(pool: Pool) -> int:
    """The longest prefix that this pool alone could give."""
    return max((pages for pages in range(1, len(pool.found) + 1) if pool.reaches(pages)), default=0)
