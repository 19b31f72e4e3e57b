"""Under which name a page of the cache stands in Redis. Pure; `storage` asks for every page.

Two pages share a name only where their bytes would be equal: the same tokens from the sequence's beginning in the same
isolation domain (both are in SGLang's page hash), the same weights and flags, the same pool, element type, page size,
layout in memory and share of the ranks. The name is part of what is sealed (`sealing`), so that a page that was moved
to another name is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hanmaru_contracts import redis_keys
from hanmaru_contracts.names import ModelId

FORMAT = 1
"""Of names and frames. Another one finds nothing of the former's."""
_PAGE_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which part of the model this process holds."""

    tensor: int
    tensors: int
    pipeline: int = 0
    pipelines: int = 1
    context: int = 0
    contexts: int = 1
    """Context parallel attention."""

    def __str__(self) -> str:
        return f"t{self.tensor}of{self.tensors}.p{self.pipeline}of{self.pipelines}.c{self.context}of{self.contexts}"


@dataclass(frozen=True, slots=True)
class PageShape:
    """One pool's page as it lies in host memory."""

    pool: str
    """SGLang's name of the pool: `kv`, `swa`, `draft`, `draft_swa`."""
    dtype: str
    page_tokens: int
    layout: str
    """Order of layers, tokens and heads in memory, as SGLang calls it."""
    layers: int
    heads: int
    key_dim: int
    value_dim: int
    payload_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.dtype}.n{self.page_tokens}.{self.layout}"
            f".l{self.layers}h{self.heads}k{self.key_dim}v{self.value_dim}.{self.payload_bytes}b"
        )


@dataclass(frozen=True, slots=True)
class PageName:
    """The three keys of one page. They share a slot of a Redis Cluster."""

    entry: str
    index: str
    used: str


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of one pool's pages, for one rank of one model."""

    model: ModelId
    content: str
    """Digest of weights, flags and releases (`weights`)."""
    ranks: Ranks
    shape: PageShape

    def page(self, page_hash: str) -> PageName:
        """Raises ValueError for what is no page hash of SGLang's."""
        if not _PAGE_HASH.fullmatch(page_hash):
            raise ValueError("a page hash is 64 hexadecimal digits")
        shard = int(page_hash[:8], 16) % redis_keys.TIER_SHARDS
        tail = f"{FORMAT}:{self.content}:{self.shape}:{self.ranks}:{self.shape.pool}:{page_hash}"
        return PageName(
            redis_keys.tier_page(self.model, shard, tail),
            redis_keys.tier_index(self.model, shard),
            redis_keys.tier_bytes(self.model, shard),
        )
