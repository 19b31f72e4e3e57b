"""What the engine's numbers are held to. Pure; `run` asks it last."""

from __future__ import annotations

from collections.abc import Mapping

AT_MOST: Mapping[str, float] = {
    "kv_bytes_ratio": 0.30,
    "kv_allocated_ratio": 0.30,
    "prefix_error": 1e-4,
}
AT_LEAST: Mapping[str, float] = {
    "concurrent_8k_ratio": 3,
    "mtp_speedup_b1": 1.5,
    "mtp_speedup_b8": 1.2,
    "before_speedup_b1": 1,
    "prefix_hits": 10,
    "prefix_evicted_tokens": 10_000,
}
BATCH16_SPEEDUP = 6
BATCH16_TOKENS_PER_S = 600
"""Either is enough: a faster single stream must not fail the other."""


def missed(summary: Mapping[str, float]) -> list[str]:
    """One line for each bar that a measured number is beyond; what was not measured misses none."""
    lines = [f"{name} is {summary[name]}, at most {bar}" for name, bar in AT_MOST.items()
             if name in summary and summary[name] > bar]  # fmt: skip
    lines += [f"{name} is {summary[name]}, at least {bar}" for name, bar in AT_LEAST.items()
              if name in summary and summary[name] < bar]  # fmt: skip
    speedup, speed = summary.get("batch16_speedup"), summary.get("batch16_tokens_per_s")
    if speedup is not None and speed is not None and speedup < BATCH16_SPEEDUP and speed < BATCH16_TOKENS_PER_S:
        lines.append(
            f"batch16_speedup is {speedup}, at least {BATCH16_SPEEDUP}, and batch16_tokens_per_s is {speed}, at least"
            f" {BATCH16_TOKENS_PER_S}: one is enough"
        )
    return lines
