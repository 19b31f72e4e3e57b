"""How many replicas a cluster's nodes get, and that a leaving node costs no other its replica."""

from __future__ import annotations

import pytest
from hanmaru_gateway.placement import SHRINK_DELAY_S, next_target
from hypothesis import given
from hypothesis import strategies as st

counts = st.integers(0, 20)


@pytest.mark.parametrize(
    ("nodes", "running", "target", "since", "then"),
    [
        (2, 2, 2, None, (2, None)),
        (3, 2, 2, None, (3, None)),  # a node has joined
        (2, 3, 3, None, (3, None)),  # it is gone, its replica is not yet
        (2, 2, 3, None, (3, 100.0)),  # both are gone: from now on the third is missing
        (2, 2, 3, 100.0 - SHRINK_DELAY_S + 1, (3, 100.0 - SHRINK_DELAY_S + 1)),
        (2, 2, 3, 100.0 - SHRINK_DELAY_S, (2, None)),
        (3, 2, 3, 80.0, (3, None)),  # it came back in time
        (0, 0, 2, None, (2, 100.0)),  # a head that has just restarted sees nobody yet
    ],
)
def test_the_target_follows_the_nodes(
    nodes: int, running: int, target: int, since: float | None, then: tuple[int, float | None]
) -> None:
    assert next_target(nodes=nodes, running=running, target=target, now_s=100.0, missing_since_s=since) == then


@given(nodes=counts, running=counts, target=counts, since=st.none() | st.floats(0, 200))
def test_no_running_replica_is_ever_one_too_many(nodes: int, running: int, target: int, since: float | None) -> None:
    wanted, _ = next_target(nodes=nodes, running=running, target=target, now_s=200.0, missing_since_s=since)
    assert wanted >= max(nodes, running)


@given(nodes=counts, running=counts, target=counts)
def test_what_is_missing_for_good_is_given_up(nodes: int, running: int, target: int) -> None:
    since: float | None = None
    for now_s in (0.0, SHRINK_DELAY_S, 2 * SHRINK_DELAY_S):
        target, since = next_target(nodes=nodes, running=running, target=target, now_s=now_s, missing_since_s=since)
    assert target == max(nodes, running)
