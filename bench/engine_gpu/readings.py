"""What SGLang says of itself -> numbers; pure. `served.py` asks.

Routes and names are 0.5.23's: `/server_info` for the pools, and `meta_info` of each answer of `/generate`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class PoolsReport:
    """What one rank allocated."""

    kv_bytes: int
    full_tokens: int
    sliding_tokens: int
    """0 where all layers share one pool."""

    @property
    def token_bytes(self) -> float:
        """All that is allocated, by tokens of context that it has room for."""
        return self.kv_bytes / self.full_tokens


def read_pools(server_info: Mapping[str, Any]) -> PoolsReport:
    """From `/server_info`. Raises KeyError with the name that is missing."""
    memory = server_info["internal_states"][0]["memory_usage"]
    sliding = memory.get("token_capacity_swa") or 0
    return PoolsReport(int(memory["kvcache"] * GIB), int(memory["token_capacity"]), int(sliding))


@dataclass(frozen=True, slots=True)
class Shot:
    """One batch of answers whose prompts were cached before."""

    tokens_per_s: float
    tokens_per_step: float
    """Of one sequence; 1 without speculation."""
    cached_ratio: float
    """Share of the prompts' tokens found in the cache: near 1, or prefill was timed as well."""


def read_shot(answers: Sequence[Mapping[str, Any]], seconds: float) -> Shot:
    """From the answers of one batch and how long it took."""
    told = [answer["meta_info"] for answer in answers]
    made = sum(each["completion_tokens"] for each in told)
    steps = sum(each.get("spec_verify_ct") or each["completion_tokens"] for each in told)
    cached = sum(each["cached_tokens"] for each in told) / sum(each["prompt_tokens"] for each in told)
    return Shot(made / seconds, made / steps, cached)


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine."""

    name: str
    pools: PoolsReport
    shots: Mapping[int, Sequence[Shot]]
    """By batch."""

    def median(self, batch: int, name: str) -> float:
        """Of one field of `Shot` over the rounds."""
        return float(statistics.median(getattr(shot, name) for shot in self.shots[batch]))

    @property
    def summary(self) -> dict[str, object]:
        """For the JSON line."""
        decode = {
            str(batch): {name: round(self.median(batch, name), 2) for name in ("tokens_per_s", "tokens_per_step")}
            for batch in self.shots
        }
        full, sliding = self.pools.full_tokens, self.pools.sliding_tokens
        return {"name": self.name, "full_tokens": full, "sliding_tokens": sliding, "decode": decode}


def table_rows(measured: Measured | None) -> list[str]:
    """One line for each batch; the head of the table for None."""
    if measured is None:
        head = "| engine | KV GB | full / sliding tokens | batch | tokens/s | tokens a step | prompt cached |"
        return [head, "|---|---|---|---|---|---|---|"]
    pools = measured.pools
    held = f"{pools.kv_bytes / 1e9:.1f} | {pools.full_tokens} / {pools.sliding_tokens}"
    rows = []
    for batch in measured.shots:
        speed, steps, cached = (
            measured.median(batch, name) for name in ("tokens_per_s", "tokens_per_step", "cached_ratio")
        )
        rows.append(f"| {measured.name} | {held} | {batch} | {speed:.0f} | {steps:.2f} | {cached:.2f} |")
    return rows


def ratios(results: Sequence[Measured]) -> dict[str, float]:
    """What is compared, as far as its engines started. Names of engines are `planned.VARIANTS`'."""
    by_name = {each.name: each for each in results}
    found: dict[str, float] = {}
    hybrid, full = by_name.get("planned, no MTP"), by_name.get("full KV, no MTP")
    if hybrid and full:
        found["kv_bytes_ratio"] = round(hybrid.pools.token_bytes / full.pools.token_bytes, 4)
        found |= _speedups("hybrid_speedup", hybrid, full)
    with_drafts = by_name.get("planned")
    if hybrid and with_drafts:
        found |= _speedups("mtp_speedup", with_drafts, hybrid)
    return found


def _speedups(name: str, ours: Measured, base: Measured) -> dict[str, float]:
    return {
        f"{name}_b{batch}": round(ours.median(batch, "tokens_per_s") / base.median(batch, "tokens_per_s"), 3)
        for batch in ours.shots
    }
