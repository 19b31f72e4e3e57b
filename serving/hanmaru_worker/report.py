"""The engine's own load snapshot -> `Load` and the scheduler's heartbeat. Pure.

`GET /v1/loads?include=core` is SGLang's cheapest route: the server reads a shared-memory page that the scheduler
rewrites after each batch and every idle second, and asks nobody (2-3 ms seen). `token_usage` is already the fullest of
the engine's pools.
"""

from __future__ import annotations

import msgspec
from hanmaru_contracts.wire.worker import Load

LOADS_PATH = "/v1/loads?include=core"


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
