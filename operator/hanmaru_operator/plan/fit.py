"""Whether a layout fits, and with what pools: weights, reserve and cache of one rank against its device. Pure.

The engine takes what a device has, holds the weights, keeps a reserve for activations and graphs and gives the rest to
its pools. This finds the largest number of running requests, and the largest prefill chunk, for which both pools hold
what those need. More memory never turns a layout down: whether it is refused depends on one quantity alone, which
grows with memory (the global tokens that fit beside a single request).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hanmaru_contracts.wire.engine_spec import Device

from hanmaru_operator.plan.engine_pool import EnginePool
from hanmaru_operator.plan.memory import Cell, Demand, Pools, cell, pools_in_budget, pools_of_tokens
from hanmaru_operator.plan.model import ModelFacts
from hanmaru_operator.plan.refusal import GIB, Reason, Refusal, gib
from hanmaru_operator.plan.shapes import Shape
from hanmaru_operator.plan.weights import stage_layers, stage_weight_bytes

MIB = 1 << 20
USUAL_TOKENS = 8192
"""Of a request and its answer, for counting how many fit at once. A choice, not a measurement."""
REASONABLE_REQUESTS = 16
"""A replica that serves fewer at once loses to one with more devices. A choice, not a measurement."""
MOST_REQUESTS = 256
"""SGLang captures graphs up to it on a device of 80 GB (`handle_gpu_memory_settings`)."""
CPU_REQUESTS = 16
"""What `hanmaru up` runs with; a CPU gains nothing from more."""
KEPT_TAILS = 64
"""Finished prefixes whose sliding ends stay: prefix caching works for so many conversations. A choice."""
CHUNKS = (4096, 2048, 1024, 512)
"""Prefill chunks, best first. SGLang's default on 80 GB is 8,192, whose reserve takes 6 GiB more from the cache."""
CPU_CHUNK = 2048
"""One forward pass must stay far below the seconds after which an engine counts as hung."""
_MARGIN = 1.0001
"""The ratio of the pools is written with seven digits, and both are cut to whole pages."""
_RATIO_DIGITS = 7

DRIVER_BYTES = 2 * GIB
"""Of a GPU before weights: what the driver hides (0.4–0.9 GiB of 40 or 80), its context, and NCCL. Estimated, not
measured here."""
CPU_ENGINE_BYTES = 4 * GIB
"""SGLang's three processes: 1.2 to 1.5 GB resident each (measured November 2026, `docs/sglang-plugin.md`)."""
NPU_SHARE = 0.9
"""Of an NPU's memory for weights and cache. furiosa-llm publishes no formula: a guess."""


@dataclass(frozen=True, slots=True)
class Request:
    """What has been settled before layouts are compared."""

    context_tokens: int
    page_size: int
    draft_tokens: int | None
    """Drafted a step; None without speculation."""
    hybrid: bool
    memory_fraction: float | None
    """As the user set it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A layout with its numbers; bytes and pools are one rank's."""

    shape: Shape
    request: Request
    cell: Cell
    pools: Pools
    weight_bytes: int
    budget_bytes: int
    """For the pools."""
    running_requests: int
    """Of the whole replica."""
    chunk_tokens: int
    sliding_ratio: float | None
    memory_fraction: float | None
    max_total_tokens: int | None

    @property
    def pool_bytes(self) -> int:
        """What the pools take."""
        return self.pools.bytes(self.cell, self.request.page_size)


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one pipeline stage puts on each of its devices."""

    weight_bytes: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class _Trial:
    """One layout under trial. Stages differ; the engine takes the smallest pools of all."""

    pool: EnginePool
    request: Request
    shape: Shape
    ranks: tuple[_Rank, ...]
    window: int

    def budget(self, rank: _Rank, running: int, chunk: int) -> tuple[int, float | None]:
        """Bytes for the pools of one rank, and the engine's memory fraction. SGLang: `_profile_available_bytes`."""
        fraction, total = self.request.memory_fraction, self.pool.device_bytes
        if self.pool.device is Device.CPU:
            return int(total * (fraction or 1.0)) - CPU_ENGINE_BYTES - rank.weight_bytes, None
        if self.pool.device is Device.NPU:
            fraction = fraction or NPU_SHARE
            return int(total * fraction) - rank.weight_bytes, fraction
        free = total - DRIVER_BYTES
        if free <= 0:
            return -1, None
        if fraction is None:
            reserve = gpu_reserve_bytes(self.shape, running, chunk, drafts=self.request.draft_tokens is not None)
            fraction = math.floor((1 - reserve / free) * 1000) / 1000
        return int(free * fraction) - rank.weight_bytes if fraction > 0 else -1, fraction

    def sliding_tokens(self, running: int, chunk: int) -> int:
        """That the sliding pool of each attention rank must hold; SGLang divides chunks among copies of the layers."""
        if not self.request.hybrid:
            return 0
        copies = self.shape.sizes.data
        demand = Demand(
            window=self.window,
            page_size=self.request.page_size,
            draft_tokens=1 if self.request.draft_tokens is None else self.request.draft_tokens + 1,
            chunk_tokens=max(1, chunk // copies),
            kept_tails=KEPT_TAILS,
        )
        return math.ceil(demand.tokens(-(-running // copies)) * _MARGIN) + 2 * self.request.page_size

    def needed_tokens(self, running: int) -> int:
        """Global tokens of one attention rank: the longest sequence, or its share of usual ones."""
        each = min(USUAL_TOKENS, self.request.context_tokens)
        return max(self.request.context_tokens, -(-running // self.shape.sizes.data) * each)

    def holds(self, running: int, chunk: int) -> bool:
        """Whether both pools of every stage hold what so many requests need."""
        sliding = self.sliding_tokens(running, chunk)
        wanted = self.needed_tokens(running) * _MARGIN + 3 * self.request.page_size
        return all(
            _global_room(rank.cell, self.budget(rank, running, chunk)[0], sliding) >= wanted for rank in self.ranks
        )

    def most_requests(self, chunk: int) -> int:
        """Most running requests, in whole numbers for each copy of the attention layers; 0 when one does not fit."""
        copies = self.shape.sizes.data
        low, high = 0, max(1, (CPU_REQUESTS if self.pool.is_cpu else MOST_REQUESTS) // copies)
        while low < high:
            middle = (low + high + 1) // 2
            if self.holds(middle * copies, chunk):
                low = middle
            else:
                high = middle - 1
        return low * copies


def fit(facts: ModelFacts, pool: EnginePool, request: Request, shape: Shape) -> Fit | Refusal:
    """The layout's numbers, or how much is missing."""
    trial = _trial(facts, pool, request, shape)
    chunks = _chunks(pool, request.context_tokens)
    if not trial.holds(1, chunks[-1]):
        return _too_small(trial, chunks[-1])
    best = 1, chunks[-1]
    for chunk in chunks:
        running = trial.most_requests(chunk)
        if running > best[0]:
            best = running, chunk
        if running >= REASONABLE_REQUESTS * shape.sizes.data:
            break
    return _result(trial, *best)


def is_possible(facts: ModelFacts, pool: EnginePool, request: Request, shape: Shape) -> bool:
    """Whether `fit` would find numbers."""
    return _trial(facts, pool, request, shape).holds(1, _chunks(pool, request.context_tokens)[-1])


def gpu_reserve_bytes(shape: Shape, running: int, chunk: int, *, drafts: bool) -> int:
    """What the engine keeps for activations and graphs on one GPU, as SGLang estimates it.

    `handle_gpu_memory_settings` and `reserve_for_graph_mb`: 1.5 MiB for each token of a chunk, 1 GiB for each 8 ranks,
    2 MiB for each request in a graph, once more for the drafting layers' graphs, and constants.
    """
    graphs = running * (2 + (2 if drafts else 0) + (3 if shape.sizes.data > 1 else 0))
    return int(MIB * (512 + 512 + 1.5 * chunk + shape.sizes.ranks * 128 + graphs))


def _trial(facts: ModelFacts, pool: EnginePool, request: Request, shape: Shape) -> _Trial:
    sizes, drafts = shape.sizes, request.draft_tokens is not None
    ranks = tuple(
        _Rank(
            stage_weight_bytes(facts, sizes, stage, with_mtp=drafts),
            cell(
                facts,
                attention_ranks=sizes.tensor // sizes.data,
                layers=stage_layers(facts.layers, sizes.pipeline, stage),
                draft_layers=facts.mtp_layers if drafts else 0,
                hybrid=request.hybrid,
                dtype_bytes=facts.dtype_bytes,
            ),
        )
        for stage in range(sizes.pipeline)
    )
    return _Trial(pool, request, shape, ranks, facts.widest_window)


def _chunks(pool: EnginePool, context_tokens: int) -> tuple[int, ...]:
    most = min(context_tokens, CPU_CHUNK) if pool.is_cpu else context_tokens
    return tuple(chunk for chunk in CHUNKS if chunk <= most) or (context_tokens,)


def _global_room(each: Cell, budget: int, sliding: int) -> float:
    """Global tokens beside so many sliding ones, which never are more than the global ones. Grows with `budget`."""
    if budget <= 0:
        return 0.0
    both = each.global_bytes + each.sliding_bytes
    if budget < sliding * both:
        return budget / both
    return (budget - sliding * each.sliding_bytes) / each.global_bytes


def _result(trial: _Trial, running: int, chunk: int) -> Fit:
    """The engine's pools: of every stage the smallest. One memory fraction serves all stages."""
    request = trial.request
    sliding = trial.sliding_tokens(running, chunk)
    budgets = [(rank, *trial.budget(rank, running, chunk)) for rank in trial.ranks]
    rank, budget, fraction = min(budgets, key=lambda entry: _global_room(entry[0].cell, entry[1], sliding))
    ratio = _ratio(sliding, _global_room(rank.cell, budget, sliding)) if request.hybrid else None
    pools = pools_in_budget(rank.cell, budget, ratio or 0.0, request.page_size)
    limit = None
    if trial.pool.is_cpu:
        # A share of the machine's memory means nothing in a pod, so the pools are given in tokens.
        limit = min(pools.global_tokens, _whole_pages(trial.needed_tokens(running), request.page_size))
        ratio = _ratio(sliding, limit) if request.hybrid else None
        pools = pools_of_tokens(rank.cell, limit, ratio or 0.0, request.page_size)
    return Fit(
        shape=trial.shape,
        request=request,
        cell=rank.cell,
        pools=pools,
        weight_bytes=max(other.weight_bytes for other in trial.ranks),
        budget_bytes=budget,
        running_requests=running,
        chunk_tokens=chunk,
        sliding_ratio=ratio,
        memory_fraction=fraction,
        max_total_tokens=limit,
    )


def _ratio(sliding: int, tokens: float) -> float:
    """Share of the sliding pool, rounded up; never above 1, because no layer needs more than a global one."""
    step = 10.0**_RATIO_DIGITS
    return min(1.0, round(math.ceil(sliding / tokens * step) / step, _RATIO_DIGITS))


def _whole_pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size


def _too_small(trial: _Trial, chunk: int) -> Refusal:
    rank = max(trial.ranks, key=lambda other: other.weight_bytes)
    budget, _ = trial.budget(rank, 1, chunk)
    message = f"{gib(rank.weight_bytes)} of weights on each device of {gib(trial.pool.device_bytes)} leave "
    if budget <= 0:
        return Refusal(Reason.TOO_SMALL, message + "nothing for the cache")
    room = int(_global_room(rank.cell, budget, trial.sliding_tokens(1, chunk)) / _MARGIN)
    message += f"{gib(budget)} for the cache, which holds {room} tokens of {trial.request.context_tokens}"
    return Refusal(Reason.TOO_SMALL, message)
