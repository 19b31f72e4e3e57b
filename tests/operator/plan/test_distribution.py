"""Replicas are shared out within minima and maxima, and none is both kept and given up."""

from __future__ import annotations

from collections import Counter

from hanmaru_operator.plan.distribution import divide
from hanmaru_operator.types import PoolOption, ReplicaFacts
from hanmaru_testing.operator_facts import NOW, deployment, option, replica
from hypothesis import given
from hypothesis import strategies as st

OPTIONS = st.lists(
    st.tuples(st.sampled_from(["1", "2", None]), st.integers(0, 2), st.one_of(st.none(), st.integers(2, 3))),
    min_size=1,
    max_size=3,
).map(
    lambda found: [
        option(pool, revision, min_replicas=low, max_replicas=high)
        for pool, (revision, low, high) in zip("abc", found, strict=False)
    ]
)
REPLICAS = st.lists(
    st.tuples(st.sampled_from("abcz"), st.sampled_from("12"), st.booleans(), st.integers(0, 9)), max_size=6
).map(
    lambda found: [
        replica(f"r{number}", pool=pool, revision=revision, on=None if waits else ("n0",), created_at=NOW - age)
        for number, (pool, revision, waits, age) in enumerate(found)
    ]
)


@given(options=OPTIONS, replicas=REPLICAS, want=st.integers(0, 5), paused=st.booleans())
def test_a_division_is_complete_and_within_its_bounds(
    options: list[PoolOption], replicas: list[ReplicaFacts], want: int, paused: bool
) -> None:
    facts = deployment(*replicas, options=options, want=want, spec={"rollout": {"paused": paused}})
    division = divide(facts, replicas)
    sorted_ids = [each.id for each in division.good] + [each.replica.id for each in division.stale]
    assert sorted(sorted_ids) == sorted(each.id for each in replicas)
    assert len(division.good) <= division.goal <= want
    if paused:
        return
    held = Counter(each.pool for each in division.good)
    current = Counter(each.pool for each in replicas if any(_runs(each, found) for found in options))
    for found in options:
        if found.revision is None:
            continue
        assert found.max_replicas is None or held[found.pool] <= found.max_replicas
        floor = min(current[found.pool], division.quotas.minimum[found.pool])
        assert held[found.pool] >= floor, "a minimum keeps what is there"


def _runs(each: ReplicaFacts, found: PoolOption) -> bool:
    return (each.pool, each.revision) == (found.pool, found.revision)
