"""Least-loaded routing: only capable workers, the emptiest first, equals by chance."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
from hanmaru_contracts.names import ModelId, ReplicaId
from hanmaru_contracts.wire.worker import Capabilities, WorkerRecord
from hanmaru_gateway.routing.policies import is_capable, least_loaded
from hanmaru_gateway.routing.snapshot import RequestFacts, WorkerSnapshot
from hypothesis import given
from hypothesis import strategies as st

RECORD = WorkerRecord(
    model=ModelId("local/tiny"),
    replica=ReplicaId("w"),
    route="tiny",
    pool="local",
    address="127.0.0.1:1",
    artifact="0" * 64,
    capabilities=Capabilities(context_tokens=1000, dtype="float32", page_size=1, sliding_window_tokens=None),
    expires_at_ms=0,
)


def snapshot(name: str, load: int, context: int = 1000, draining: bool = False) -> WorkerSnapshot:
    capabilities = msgspec.structs.replace(RECORD.capabilities, context_tokens=context)
    record = msgspec.structs.replace(RECORD, replica=ReplicaId(name), capabilities=capabilities, draining=draining)
    return WorkerSnapshot(record, load)


workers = st.lists(
    st.builds(snapshot, st.uuids().map(str), st.integers(0, 50), st.sampled_from([100, 1000, 49_483]), st.booleans()),
    max_size=8,
)


@given(workers, st.integers(1, 50_000), st.integers())
def test_only_capable_workers_are_ranked_and_all_of_them(fleet: list[WorkerSnapshot], tokens: int, seed: int) -> None:
    facts = RequestFacts(total_tokens=tokens)
    ranked = least_loaded(facts, fleet, random.Random(seed).random)
    assert {w.replica for w in ranked} == {w.replica for w in fleet if is_capable(facts, w)}
    assert [w.load_requests for w in ranked] == sorted(w.load_requests for w in ranked)
    assert all(not w.record.draining and w.record.capabilities.context_tokens >= tokens for w in ranked)


def test_a_long_request_never_goes_to_a_small_pool() -> None:
    fleet = [snapshot("npu", 0, 49_483), snapshot("gpu", 99, 262_144)]
    assert [w.replica for w in least_loaded(RequestFacts(100_000), fleet, lambda: 0.0)] == ["gpu"]


def test_equals_share_by_chance() -> None:
    fleet = [snapshot(name, 3) for name in "abc"]
    chance = random.Random(1).random
    first = Counter(least_loaded(RequestFacts(1), fleet, chance)[0].replica for _ in range(300))
    assert all(70 < count < 130 for count in first.values())
