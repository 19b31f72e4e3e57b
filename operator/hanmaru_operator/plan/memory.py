"""How many bytes a model's cache needs, and how many SGLang holds for it. Pure arithmetic; `engine` decides with it.

Two counts stand side by side. *The model's*: every global layer keeps every token, a sliding one its window. *The
engine's*: SGLang 0.5.23 with our plugin, which keeps two pools, the sliding one larger than the windows. Formulas of
the second are SGLang's own, named beside each; `tests/operator/plan/test_memory.py` compares them with its code and
with what a running engine reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_operator.plan.model import ModelFacts

EVICTION_INTERVAL_TOKENS = 128
"""`SGLANG_SWA_EVICTION_INTERVAL`: tokens a sequence lets slide out of its window before it frees them."""
OVERLAPPING_CHUNKS = 2
"""Prefill chunks in flight under SGLang's overlapping scheduler."""


@dataclass(frozen=True, slots=True)
class ModelCache:
    """What the architecture needs, whatever runs it."""

    global_token_bytes: int
    """One token over all global layers."""
    sequence_bytes: int
    """One sequence's full windows over all sliding layers."""

    def bytes(self, sequences: int, tokens_each: int) -> int:
        """Bytes of so many sequences, each longer than every window."""
        return sequences * (self.sequence_bytes + tokens_each * self.global_token_bytes)


def model_cache(facts: ModelFacts) -> ModelCache:
    """Without MTP layers, which draft but are not needed."""
    layer = 2 * facts.kv_heads * facts.head_dim * facts.dtype_bytes
    windows = sum(window for window in facts.windows if window is not None)
    return ModelCache(layer * facts.global_layers, layer * windows)


@dataclass(frozen=True, slots=True)
class Cell:
    """Bytes that one token takes on one device, drafting layers included."""

    global_bytes: int
    """In the pool of the global layers, or of all layers where there is one pool."""
    sliding_bytes: int
    """In the pool of the sliding layers; 0 where there is one pool."""


def cell(
    facts: ModelFacts, *, attention_ranks: int, layers: range, draft_layers: int, hybrid: bool, dtype_bytes: int
) -> Cell:
    """Of a rank that holds `layers` and one of `attention_ranks` shares of the heads.

    SGLang: `HybridSWAPoolConfigurator` and `ModelConfig.get_num_kv_heads`. Every rank keeps at least one KV head, so
    beyond the model's KV heads more ranks keep copies. A drafting layer is counted as a sliding one as far as the model
    has sliding ones; K-EXAONE's runs as layer 0, which is sliding.
    """
    heads = max(1, facts.kv_heads // attention_ranks)
    layer = 2 * heads * facts.head_dim * dtype_bytes
    windows = facts.windows[layers.start : layers.stop]
    if not hybrid:
        return Cell(layer * (len(windows) + draft_layers), 0)
    draft_sliding = min(draft_layers, facts.sliding_layers)
    global_layers = windows.count(None)
    sliding_layers = len(windows) - global_layers
    return Cell(layer * (global_layers + draft_layers - draft_sliding), layer * (sliding_layers + draft_sliding))


@dataclass(frozen=True, slots=True)
class Demand:
    """What the sliding pool must hold at once so that no request starves."""

    window: int
    page_size: int
    draft_tokens: int
    """Tokens verified a step: drafted ones and one more; 1 without speculation."""
    chunk_tokens: int
    """Prefill chunk of one attention rank."""
    kept_tails: int
    """Ends of finished prefixes that stay usable for the next request."""

    @property
    def request_tokens(self) -> int:
        """Of one running request. SGLang: `compute_swa_request_cap` with its overlapping scheduler.

        The window, what has slid out of it since the last eviction, a page so that eviction ends on a page, and what a
        decode step allocates ahead.
        """
        ahead = self.page_size if self.draft_tokens == 1 else 2 * self.draft_tokens
        return self.window + EVICTION_INTERVAL_TOKENS * self.draft_tokens + self.page_size + ahead

    def tokens(self, running_requests: int) -> int:
        """Of so many running requests on one attention rank."""
        chunks = OVERLAPPING_CHUNKS * self.chunk_tokens + self.page_size
        tails = self.kept_tails * (self.window + self.page_size)
        return running_requests * self.request_tokens + chunks + tails


@dataclass(frozen=True, slots=True)
class Pools:
    """Sizes of the engine's pools on each attention rank."""

    global_tokens: int
    sliding_tokens: int
    """0 where all layers share one pool."""

    def bytes(self, each: Cell, page_size: int) -> int:
        """Bytes on one device. Each pool has one page more, which takes the writes of padding (`MHATokenToKVPool`)."""
        held = (self.global_tokens + page_size) * each.global_bytes
        return held + (self.sliding_tokens + page_size) * each.sliding_bytes if each.sliding_bytes else held


def pools_in_budget(each: Cell, budget_bytes: int, sliding_ratio: float, page_size: int) -> Pools:
    """What SGLang makes of so many bytes. SGLang: `HybridSWAPoolConfigurator.calculate_pool_sizes`."""
    tokens = int(budget_bytes // (each.global_bytes + sliding_ratio * each.sliding_bytes)) if budget_bytes > 0 else 0
    return pools_of_tokens(each, tokens, sliding_ratio, page_size)


def pools_of_tokens(each: Cell, global_tokens: int, sliding_ratio: float, page_size: int) -> Pools:
    """What SGLang makes of `--max-total-tokens`: whole pages, rounded down."""
    whole = global_tokens // page_size * page_size
    return Pools(whole, int(whole * sliding_ratio) // page_size * page_size if each.sliding_bytes else 0)
