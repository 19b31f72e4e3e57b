from __future__ import annotations

import pytest
from hanmaru_worker.group import LeaderHealth, LeaderWatch, read_leader
from hanmaru_worker.health import Phase

LOADING = LeaderHealth(Phase.LOADING, "a")
SERVING = LeaderHealth(Phase.SERVING, "a")


def test_a_leader_is_gone_after_ten_silent_seconds() -> None:
    watch = LeaderWatch(first_sight_s=600.0, now=0.0)
    watch.saw(SERVING, 5.0)
    assert watch.complaint(15.0) is None
    assert "gone for 10 s" in (watch.complaint(15.1) or "")


def test_a_leader_may_take_as_long_to_appear_as_an_engine_may_to_start() -> None:
    watch = LeaderWatch(first_sight_s=600.0, now=0.0)
    assert watch.complaint(600.0) is None
    assert "never answered" in (watch.complaint(601.0) or "")


@pytest.mark.parametrize("now", [LeaderHealth(Phase.LOADING, "b"), LeaderHealth(Phase.STOPPING, "a")])
def test_a_leader_that_ended_or_started_anew_is_gone_at_once(now: LeaderHealth) -> None:
    watch = LeaderWatch(first_sight_s=600.0, now=0.0)
    watch.saw(LOADING, 1.0)
    watch.saw(SERVING, 2.0)
    assert watch.complaint(2.0) is None
    watch.saw(now, 3.0)
    watch.saw(SERVING, 4.0)
    assert "ended or started anew" in (watch.complaint(4.0) or "")


def test_silence_while_this_rank_was_stopped_proves_nothing() -> None:
    watch = LeaderWatch(first_sight_s=600.0, now=0.0)
    watch.saw(SERVING, 1.0)
    watch.restart(100.0)
    assert watch.complaint(105.0) is None
    assert watch.is_silent(105.0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"phase": "serving", "instance": "a", "rank": 0}', SERVING),
        (b'{"phase": "asleep", "instance": "a"}', None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_only_a_supervisors_answer_is_one(body: bytes, expected: LeaderHealth | None) -> None:
    assert read_leader(body) == expected
