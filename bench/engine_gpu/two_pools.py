"""Keys and values of a hybrid model in two pools, as SGLang holds them for it: who has which slot, and what it costs.

The engine's own pools need the engine; these have their form (one table from request and position to a slot of the full
pool, one map from there to a slot of the sliding pool) and need torch alone. What is gathered and attended is the
product's code, `hanmaru_worker.plugin.gathers`. Without `sliding_slots` there is one pool in which every layer keeps
every token: what upstream does with this model. Nobody shares a prefix here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hanmaru_worker.plugin.gathers import Gather, Lengths, attend, full_gathers, sliding_gathers

EVICTION_INTERVAL_TOKENS = 128
"""`SGLANG_SWA_EVICTION_INTERVAL`: what a sequence lets slide out of its window before it gives it back."""
PAD_SLOTS = 1
"""Slot 0 of each pool takes the writes of padding and belongs to nobody."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the pools are made for."""

    is_sliding: tuple[bool, ...]
    """By layer."""
    kv_heads: int
    head_dim: int
    window: int
    """Tokens a sliding layer attends, the query's own included."""
    dtype: torch.dtype
    device: torch.device
    revisited_tokens: int = 0
    """How far before a request's newest position a pass may begin: an MTP block goes over accepted tokens again."""

    @property
    def token_bytes(self) -> int:
        """One token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    def pool_bytes(self, full_slots: int, sliding_slots: int | None) -> int:
        """What `Pools` of these sizes take: without a sliding pool all layers keep the full pool's slots."""
        sliding_layers = sum(self.is_sliding)
        full_layers = len(self.is_sliding) - sliding_layers
        sliding = full_slots if sliding_slots is None else sliding_slots
        return self.token_bytes * (full_layers * (full_slots + PAD_SLOTS) + sliding_layers * (sliding + PAD_SLOTS))


def sliding_slots_needed(window: int, requests: int, *, verified_tokens: int, chunk_tokens: int) -> int:
    """Slots of a sliding pool in which no request starves: the planner's formula, pages of 1, no kept prefixes.

    `verified_tokens` is 1 without speculation. `tests/bench` holds it to `hanmaru_operator.plan.memory.Demand`.
    """
    ahead = 1 if verified_tokens == 1 else 2 * verified_tokens
    return requests * (window + EVICTION_INTERVAL_TOKENS * verified_tokens + 1 + ahead) + 2 * chunk_tokens + 1


@dataclass(slots=True)
class Request:
    """A sequence that holds slots."""

    row: int
    """Of the table."""
    tokens: int = 0
    """Positions below this have a slot."""
    given_back: int = 0
    """Positions below this have none in the sliding pool any more."""


class Pools:
    """All layers' keys and values. Slots are handed out in random order, so that the two numberings differ."""

    def __init__(
        self, shape: Shape, *, full_slots: int, sliding_slots: int | None, requests: int, context: int, poison: bool
    ) -> None:
        """With `poison` a slot that nobody holds reads as NaN, so that no answer survives a read in the wrong place."""
        self.shape = shape
        self._poison = poison
        self._full_free = _shuffled(full_slots, shape.device)
        self._sliding_free = None if sliding_slots is None else _shuffled(sliding_slots, shape.device)
        self.table = torch.zeros((requests, context), dtype=torch.int32, device=shape.device)
        self.to_sliding = torch.zeros(full_slots + PAD_SLOTS, dtype=torch.int64, device=shape.device)
        sliding = full_slots if sliding_slots is None else sliding_slots
        sizes = [(sliding if is_sliding else full_slots) + PAD_SLOTS for is_sliding in shape.is_sliding]
        self.keys = [self._buffer(size) for size in sizes]
        self.values = [self._buffer(size) for size in sizes]

    def _buffer(self, slots: int) -> torch.Tensor:
        sizes = (slots, self.shape.kv_heads, self.shape.head_dim)
        content = torch.nan if self._poison else 0.0
        return torch.full(sizes, content, dtype=self.shape.dtype, device=self.shape.device)

    @property
    def has_two(self) -> bool:
        """Whether sliding layers have a pool of their own."""
        return self._sliding_free is not None

    @property
    def bytes(self) -> int:
        """Of the keys and values as they stand in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in (*self.keys, *self.values))

    def give(self, requests: Sequence[Request], counts: Sequence[int]) -> None:
        """Slots for each request's next positions; takes back what its queries cannot see any more."""
        for request in requests:
            self.slide(request)
        rows, positions = places(requests, [request.tokens for request in requests], counts, self.shape.device)
        slots, self._full_free = _take(self._full_free, len(rows), "full")
        self.table[rows, positions] = slots.to(torch.int32)
        if self._sliding_free is not None:
            sliding, self._sliding_free = _take(self._sliding_free, len(rows), "sliding")
            self.to_sliding[slots] = sliding
        for request, count in zip(requests, counts, strict=True):
            request.tokens += count

    def cut(self, request: Request, tokens: int) -> None:
        """Take back the slots of positions from `tokens` on: drafts that were refused, or a whole sequence."""
        slots = self.table[request.row, tokens : request.tokens].to(torch.int64)
        self._full_free = torch.cat((self._full_free, slots))
        if self._sliding_free is not None:
            self._free_sliding(slots[max(0, request.given_back - tokens) :])
        self._forget(slots, is_sliding=False)
        request.tokens, request.given_back = tokens, min(tokens, request.given_back)

    def slide(self, request: Request) -> None:
        """Take back what is behind the window: an interval at least, and never a key that a coming query sees."""
        unseen = request.tokens - self.shape.revisited_tokens - (self.shape.window - 1)
        if self._sliding_free is None or unseen - request.given_back < EVICTION_INTERVAL_TOKENS:
            return
        self._free_sliding(self.table[request.row, request.given_back : unseen].to(torch.int64))
        request.given_back = unseen

    def _free_sliding(self, full_slots: torch.Tensor) -> None:
        assert self._sliding_free is not None
        slots = self.to_sliding[full_slots]
        self.to_sliding[full_slots] = 0
        self._sliding_free = torch.cat((self._sliding_free, slots))
        self._forget(slots, is_sliding=True)

    def _forget(self, slots: torch.Tensor, *, is_sliding: bool) -> None:
        if not self._poison:
            return
        for layer, layer_is_sliding in enumerate(self.shape.is_sliding):
            if (layer_is_sliding and self.has_two) == is_sliding:
                self.keys[layer][slots] = torch.nan
                self.values[layer][slots] = torch.nan


@dataclass(slots=True)
class Pass:
    """One forward pass: some positions of some requests, whose slots they already have. Layers call `attend`."""

    pools: Pools
    requests: Sequence[Request]
    starts: list[int]
    """First position of each request in this pass."""
    counts: list[int]
    """Positions of each request in this pass, one row each, request by request."""
    keys_before: int
    """What a query of a sliding layer sees besides itself: the model's window less one."""
    positions: torch.Tensor = field(init=False)
    """int64 [rows]."""
    _slots: torch.Tensor = field(init=False)
    _sliding_slots: torch.Tensor | None = field(init=False)
    _gathers: dict[bool, list[Gather]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Where the pass writes; what it gathers follows at the first layer that asks, as in the backend."""
        rows, self.positions = places(self.requests, self.starts, self.counts, self.pools.shape.device)
        self._slots = self.pools.table[rows, self.positions].to(torch.int64)
        self._sliding_slots = self.pools.to_sliding[self._slots] if self.pools.has_two else None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Write `key` and `value` [rows, kv heads, dim], attend with `query` [rows, heads, dim]; the same form back."""
        pools, is_sliding = self.pools, self.pools.shape.is_sliding[layer]
        write = self._sliding_slots if is_sliding and self._sliding_slots is not None else self._slots
        pools.keys[layer][write] = key.to(pools.shape.dtype)
        pools.values[layer][write] = value.to(pools.shape.dtype)
        out = torch.empty_like(query)
        for gather in self._gathers_of(is_sliding, query.dtype):
            attend(query, pools.keys[layer], pools.values[layer], gather, scaling, out)
        return out

    def _gathers_of(self, is_sliding: bool, dtype: torch.dtype) -> list[Gather]:
        found = self._gathers.get(is_sliding)
        if found is None:
            # Everything they make is made where the pools are.
            with self.pools.shape.device:
                found = self._make_gathers(is_sliding, dtype)
            self._gathers[is_sliding] = found
        return found

    def _make_gathers(self, is_sliding: bool, dtype: torch.dtype) -> list[Gather]:
        lengths = Lengths(self.starts, self.counts, torch.tensor([request.row for request in self.requests]))
        if not is_sliding:
            return full_gathers(self.pools.table, lengths, dtype)
        plain = sliding_gathers(self.pools.table, lengths, self.keys_before, dtype)
        if not self.pools.has_two:
            return plain
        return [Gather(each.rows, self.pools.to_sliding[each.slots], each.bias, each.is_row) for each in plain]


def next_pass(pools: Pools, requests: Sequence[Request], counts: Sequence[int]) -> Pass:
    """Give each request so many new positions and pass over them."""
    starts = [request.tokens for request in requests]
    pools.give(requests, counts)
    return Pass(pools, requests, starts, list(counts), pools.shape.window - 1)


def places(
    requests: Sequence[Request], starts: Sequence[int], counts: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Table row and position, int64, of each row of a pass that goes over `counts` positions from `starts` on."""
    owner = torch.tensor([index for index, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    table_rows = torch.tensor([request.row for request in requests])[owner]
    positions = [start + nth for start, count in zip(starts, counts, strict=True) for nth in range(count)]
    return table_rows.to(device), torch.tensor(positions, dtype=torch.int64).to(device)


def _shuffled(slots: int, device: torch.device) -> torch.Tensor:
    return torch.randperm(slots, device=device) + PAD_SLOTS


def _take(free: torch.Tensor, count: int, pool: str) -> tuple[torch.Tensor, torch.Tensor]:
    if count > len(free):
        raise RuntimeError(f"the {pool} pool has {len(free)} free slots and {count} are needed; make it larger")
    return free[:count], free[count:]
