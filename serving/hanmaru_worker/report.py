"""What an engine says of its load -> `Load` and the scheduler's heartbeat. Pure; `engines` names the routes.

SGLang: a snapshot that the scheduler rewrites after each batch and every idle second; `token_usage` is already the
fullest of the engine's pools. furiosa-llm: its Prometheus page, one sample for each copy of the engine.
"""

from __future__ import annotations

import re

import msgspec
from hanmaru_contracts.wire.worker import Load


class _RankLoad(msgspec.Struct, frozen=True):
    timestamp: float
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float


class _Loads(msgspec.Struct, frozen=True):
    loads: tuple[_RankLoad, ...]


class Report(msgspec.Struct, frozen=True):
    """One look at the engine."""

    load: Load
    heartbeat: float
    """Engine's clock; the oldest among data-parallel ranks, so that one stuck rank stops it."""


_decoder = msgspec.json.Decoder(_Loads)


def read_report(body: bytes) -> Report | None:
    """None when the answer is not one, or no rank has reported yet."""
    try:
        ranks = _decoder.decode(body).loads
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    if not ranks:
        return None
    load = Load(
        running_requests=sum(rank.num_running_reqs for rank in ranks),
        queued_requests=sum(rank.num_waiting_reqs for rank in ranks),
        kv_load_ratio=min(1.0, max(rank.token_usage for rank in ranks)),
    )
    return Report(load, min(rank.timestamp for rank in ranks))


_FURIOSA_SAMPLE = re.compile(
    rb"^furiosa_llm_(num_requests_running|num_requests_waiting|kv_cache_usage_percent)(?:\{[^\n]*\})? (\S+)",
    re.MULTILINE,
)


def read_furiosa_report(page: bytes, now: float) -> Report | None:
    """None when the page does not say how many requests run. `now` becomes the heartbeat."""
    samples: dict[bytes, list[float]] = {}
    try:
        for name, value in _FURIOSA_SAMPLE.findall(page):
            samples.setdefault(name, []).append(float(value))
        load = Load(
            running_requests=int(sum(samples[b"num_requests_running"])),
            queued_requests=int(sum(samples.get(b"num_requests_waiting", ()))),
            # "percent" in its name, 1 when full.
            kv_load_ratio=min(1.0, max(samples.get(b"kv_cache_usage_percent", (0.0,)))),
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return Report(load, now)
