"""Who leads: never two at once, whatever clocks, requests and processes do; and soon somebody again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_operator.api_errors import Conflict, NotFound, Unreachable
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.leader import Elector, LeadershipLost, Move, Record, Seen, Times, next_move, steady_clock, watch
from hanmaru_operator.types import ObjectKey
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = ObjectKey("Lease", "own", "hanmaru-operator")
TIMES = Times(lease_s=15, renew_deadline_s=10, retry_s=2)
THEIRS = Record("other", 15, 7)


@pytest.mark.parametrize(
    ("record", "seen_for_s", "move"),
    [
        (None, 0, Move.CREATE),
        (replace(THEIRS, holder="me"), 0, Move.RENEW),
        (replace(THEIRS, holder="me"), 100, Move.RENEW),
        (replace(THEIRS, holder=""), 0, Move.TAKE),
        (THEIRS, 0, Move.WAIT),
        (THEIRS, 14.9, Move.WAIT),
        (THEIRS, 15, Move.TAKE),
        (replace(THEIRS, lease_s=60), 15, Move.WAIT),
        (replace(THEIRS, lease_s=60), 60, Move.TAKE),
    ],
)
def test_a_record_is_judged_by_how_long_we_have_seen_it(record: Record | None, seen_for_s: float, move: Move) -> None:
    assert next_move(Seen(record, since=1000), "me", 1000 + seen_for_s, TIMES.lease_s) is move


def test_a_renewal_starts_the_waiting_anew() -> None:
    first = watch(None, THEIRS, 10)
    assert watch(first, THEIRS, 20) == Seen(THEIRS, 10)
    renewed = replace(THEIRS, resource_version=8)
    assert watch(first, renewed, 20) == Seen(renewed, 20)


def test_the_clock_only_goes_forward() -> None:
    assert steady_clock() <= steady_clock()


class FakeLeases:
    """One Lease of an API server that can be slow, away, or answer what nobody hears."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.is_away = False
        self.loses_answers = False

    async def get(self, _: ObjectKey) -> dict[str, Any]:
        self._reach()
        if self.lease is None:
            raise NotFound("none")
        return dict(self.lease)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._reach()
        if self.lease is not None:
            raise Conflict("already exists")
        return self._store(manifest)

    async def update(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._reach()
        if self.lease is None or manifest["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("changed")
        return self._store(manifest)

    def _reach(self) -> None:
        if self.is_away:
            raise Unreachable("no answer")

    def _store(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**manifest, "metadata": metadata}
        if self.loses_answers:
            raise Unreachable("no answer")
        return dict(self.lease)


@dataclass
class Candidate:
    """One elector with a clock of its own, stepped by hand."""

    leases: FakeLeases
    name: str
    now: float = 0.0
    elector: Elector = field(init=False)

    def __post_init__(self) -> None:
        self.elector = Elector(self.leases, KEY, self.name, times=TIMES, clock=lambda: self.now)  # type: ignore[arg-type]

    async def attempt(self) -> bool:
        return await self.elector._attempt()


async def test_the_second_takes_over_only_after_the_whole_lease() -> None:
    leases = FakeLeases()
    a, b = Candidate(leases, "a"), Candidate(leases, "b", now=5000.0)  # clocks have nothing in common
    assert await a.attempt()
    assert not await b.attempt()
    b.now += 14
    assert not await b.attempt()
    a.now += 14
    assert not a.elector.is_holder  # it stopped 4 s before anybody could follow
    b.now += 1
    assert await b.attempt()
    assert b.elector.is_holder


async def test_a_holder_that_renews_is_never_followed() -> None:
    leases = FakeLeases()
    a, b = Candidate(leases, "a"), Candidate(leases, "b")
    for _ in range(20):
        assert await a.attempt()
        assert a.elector.is_holder
        assert not await b.attempt()
        a.now += 9
        b.now += 9


async def test_a_clock_that_jumps_ends_leading_and_nothing_worse() -> None:
    leases = FakeLeases()
    a = Candidate(leases, "a")
    await a.attempt()
    a.now += 3600  # the machine slept
    assert not a.elector.is_holder
    with pytest.raises(LeadershipLost, match="10 s"):
        await a.elector.keep()


async def test_a_renewal_nobody_heard_of_does_not_lengthen_our_time() -> None:
    leases = FakeLeases()
    a = Candidate(leases, "a")
    await a.attempt()
    leases.loses_answers = True
    a.now += 8
    assert not await a.attempt()
    assert a.elector.time_left_s() == 2
    leases.loses_answers = False
    assert await a.attempt()  # what it finds is its own
    assert a.elector.time_left_s() == 10


async def test_giving_back_lets_the_next_one_lead_at_once() -> None:
    leases = FakeLeases()
    a, b = Candidate(leases, "a"), Candidate(leases, "b")
    await a.attempt()
    await b.attempt()
    await a.elector.release()
    assert not a.elector.is_holder
    assert await b.attempt()
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1
    await a.elector.release()  # not ours any more: left alone
    assert leases.lease["spec"]["holderIdentity"] == "b"


async def test_a_renewal_cancelled_on_its_way_does_not_keep_the_lease() -> None:
    """It was written, and nobody heard: the version that we know is not the lease's any more."""
    leases = FakeLeases()
    a, b = Candidate(leases, "a"), Candidate(leases, "b")
    await a.attempt()
    leases.loses_answers = True
    await a.attempt()
    leases.loses_answers = False
    await a.elector.release()
    assert await b.attempt()


async def test_what_others_wrote_on_the_lease_stays() -> None:
    """A release of the chart makes it, and knows by its marks at the end what it may delete."""
    leases = FakeLeases()
    marks = {"labels": {"managed-by": "Helm"}, "annotations": {"release-name": "hanmaru"}}
    await leases.create({"metadata": {"name": "hanmaru-operator", **marks}})
    a, b = Candidate(leases, "a"), Candidate(leases, "b")
    for step in (a.attempt, a.attempt, a.elector.release, b.attempt):
        await step()
        assert leases.lease is not None
        assert {part: leases.lease["metadata"].get(part) for part in marks} == marks


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["attempt", "away", "back", "deaf", "hear", "release"]),
        st.integers(0, 2),
        st.floats(0, 8),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_there_are_never_two(steps: list[tuple[str, int, float]]) -> None:
    """One real time for all, read from clocks with different offsets; requests take no time, outages do."""

    async def play() -> None:
        leases = FakeLeases()
        candidates = [Candidate(leases, name, now=offset) for name, offset in (("a", 0.0), ("b", 1e6), ("c", -500.0))]
        for what, who, seconds in steps:
            for candidate in candidates:
                candidate.now += seconds
            match what:
                case "attempt":
                    await candidates[who].attempt()
                case "release":
                    await candidates[who].elector.release()
                case "away" | "back":
                    leases.is_away = what == "away"
                case "deaf" | "hear":
                    leases.loses_answers = what == "deaf"
            assert sum(candidate.elector.is_holder for candidate in candidates) <= 1

    asyncio.run(play())


async def test_two_on_the_real_api_server(control_plane: ControlPlane, namespace: str) -> None:
    times = Times(lease_s=2.0, renew_deadline_s=1.4, retry_s=0.3)
    key = ObjectKey("Lease", namespace, "hanmaru-operator")
    connection = read_connection({"KUBECONFIG": str(control_plane.kubeconfig)})
    async with asyncio.timeout(30), open_http(connection) as http:
        cluster = Cluster(http, own_namespace=namespace)
        a, b = (Elector(cluster, key, name, times=times) for name in "ab")
        await a.acquire()
        keeping = asyncio.create_task(a.keep())
        waiting = asyncio.create_task(b.acquire())
        await asyncio.sleep(3)
        assert a.is_holder
        assert not b.is_holder
        keeping.cancel()  # it dies without a word
        await asyncio.wait([keeping, waiting])
        assert not a.is_holder
        assert b.is_holder
        with pytest.raises(LeadershipLost):
            await a.keep()
        await asyncio.to_thread(control_plane.stop_apiserver)
        with pytest.raises(LeadershipLost):
            await b.keep()
        await asyncio.to_thread(control_plane.start_apiserver)
        await a.acquire()
        assert not b.is_holder
