"""A whole group in one domain or nowhere, best fit, and honest numbers of what is missing."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import Toleration
from hanmaru_operator.plan.placement import (
    GroupShape,
    NoRoom,
    Placed,
    fits_empty,
    free_groups,
    is_usable,
    offer,
    place_group,
)
from hanmaru_operator.types import NodeRoom
from hanmaru_testing.operator_facts import GPU, RACK, room_of
from hypothesis import given
from hypothesis import strategies as st


def shape(size: int = 2, devices: float = 8, domain_key: str = RACK, **more: Any) -> GroupShape:
    return GroupShape({GPU: float(devices), **more.pop("also", {})}, size, GPU, domain_key, **more)


def racks(*free: Sequence[float]) -> list[NodeRoom]:
    """Nodes `r<rack>n<number>` with so many devices free."""
    return [
        room_of(f"r{rack}n{number}", devices, f"rack-{rack}")
        for rack, nodes in enumerate(free)
        for number, devices in enumerate(nodes)
    ]


@pytest.mark.parametrize(
    ("asked", "rooms", "nodes"),
    [
        pytest.param(shape(2), racks([8, 8]), ("r0n0", "r0n1"), id="fits"),
        pytest.param(shape(2), racks([8, 8, 8], [8, 8]), ("r1n0", "r1n1"), id="the tightest domain"),
        pytest.param(shape(2), racks([8, 0], [8, 0], [8, 8]), ("r2n0", "r2n1"), id="one domain holds it all"),
        pytest.param(shape(2), racks([8, 8], [8, 8]), ("r0n0", "r0n1"), id="equal domains: by name"),
        pytest.param(shape(1, 4), racks([8, 4]), ("r0n1",), id="the tightest node"),
        pytest.param(shape(2, 4), racks([8]), ("r0n0", "r0n0"), id="small pods share a node"),
        pytest.param(shape(3, 4), racks([8, 4, 5]), ("r0n1", "r0n2", "r0n0"), id="fuller nodes first"),
        pytest.param(shape(2, domain_key=""), racks([8], [8]), ("r0n0", "r1n0"), id="the pool is one domain"),
        pytest.param(shape(1, 0.1), racks([0.3 - 0.2]), ("r0n0",), id="tenths do not sum exactly"),
    ],
)
def test_a_group_is_placed_tightly_in_one_domain(
    asked: GroupShape, rooms: Sequence[NodeRoom], nodes: tuple[str, ...]
) -> None:
    assert place_group(asked, rooms) == Placed(nodes)  # type: ignore[arg-type]
    assert place_group(asked, rooms[::-1]) == Placed(nodes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "rooms", "missing", "domain"),
    [
        pytest.param(shape(2), racks([8, 0]), 8, "rack-0", id="a busy node"),
        pytest.param(shape(2), racks([8]), 8, "rack-0", id="a node too few"),
        pytest.param(shape(2), racks([8, 5]), 3, "rack-0", id="some devices of a node"),
        pytest.param(shape(2), racks([8, 0], [8, 6]), 2, "rack-1", id="the best domain"),
        pytest.param(shape(3), racks([8]), 16, "rack-0", id="two nodes too few"),
        pytest.param(shape(2), [], 16, "", id="no node"),
        pytest.param(shape(2, 4), racks([2]), 6, "rack-0", id="two pods on one node"),
        pytest.param(shape(2), [room_of("n0", 8), room_of("n1", 8)], 16, "", id="nodes without the label"),
        pytest.param(
            shape(2),
            [room_of("n0", 8, "rack-0"), room_of("n1", 7, "rack-0", devices=7)],
            8,
            "rack-0",
            id="7 of 8 healthy: freeing devices does not help, another node does",
        ),
        pytest.param(
            shape(2),
            [room_of("n0", 8, "rack-0"), room_of("n1", 8, "rack-0", is_schedulable=False)],
            8,
            "rack-0",
            id="a cordoned node",
        ),
    ],
)
def test_what_is_missing_is_the_least_that_would_do(
    asked: GroupShape, rooms: Sequence[NodeRoom], missing: int, domain: str
) -> None:
    answer = place_group(asked, rooms)
    assert isinstance(answer, NoRoom)
    assert (answer.devices_missing, answer.best_domain) == (missing, domain)
    assert answer.message.startswith(f"{missing} missing")


@pytest.mark.parametrize(
    ("memory_gib", "used_gib", "missing", "message"),
    [
        (128, 64, 0, f"36.0Gi memory missing beside free {GPU}"),
        (64, 0, 8, "8 missing (too little memory beside free ones)"),
    ],
)
def test_another_resource_that_is_missing_is_named(
    memory_gib: float, used_gib: float, missing: int, message: str
) -> None:
    node = room_of("n0", 8, allocatable={"memory": memory_gib * 2**30})
    node = replace(node, free={GPU: 8.0, "memory": (memory_gib - used_gib) * 2**30})
    answer = place_group(shape(1, domain_key="", also={"memory": 100.0 * 2**30}), [node])
    assert isinstance(answer, NoRoom)
    assert (answer.devices_missing, answer.message) == (missing, message)


@pytest.mark.parametrize(
    ("taint", "toleration", "expected"),
    [
        (("k", "v", "NoSchedule"), None, False),
        (("k", "v", "NoExecute"), None, False),
        (("k", "v", "PreferNoSchedule"), None, True),
        (("k", "v", "NoSchedule"), Toleration(key="k", value="v"), True),
        (("k", "v", "NoSchedule"), Toleration(key="k", value="w"), False),
        (("k", "v", "NoSchedule"), Toleration(key="k", operator="Exists"), True),
        (("k", "v", "NoSchedule"), Toleration(operator="Exists"), True),
        (("k", "v", "NoSchedule"), Toleration(key="k", operator="Exists", effect="NoExecute"), False),
        (("k", "v", "NoExecute"), Toleration(key="k", operator="Exists", effect="NoExecute"), True),
    ],
)
def test_taints_are_respected(taint: tuple[str, str, str], toleration: Toleration | None, expected: bool) -> None:
    tolerations = [] if toleration is None else [toleration]
    assert is_usable(room_of("n0", taints=(taint,)), tolerations) is expected


def test_the_pools_offer_says_how_many_groups_fit_or_what_is_missing() -> None:
    two = offer(shape(2), racks([8, 8, 8, 8, 8]))
    assert (two.free_groups, two.devices_missing, two.no_room, two.fits_empty) == (2, 0, "", True)
    none = offer(shape(2), racks([8, 0]))
    assert (none.free_groups, none.devices_missing, none.no_room, none.fits_empty) == (
        0,
        8,
        "8 missing, best in rack-0",
        True,
    )
    held = offer(shape(2), racks([8, 8]), held_by="ns/old")
    assert (held.free_groups, held.no_room) == (0, "waits behind ns/old, which is older")


def test_what_daemons_hold_on_an_idle_node_never_comes_free() -> None:
    asked = shape(1, domain_key="", also={"memory": 100.0})
    daemons = room_of("n0", 8, allocatable={"memory": 100.0})
    daemons = replace(daemons, free={GPU: 8.0, "memory": 90.0})
    assert not fits_empty(asked, [daemons])
    assert fits_empty(asked, [replace(daemons, free={GPU: 0.0, "memory": 10.0})]), (
        "a group that ends gives its share back"
    )


ROOMS = st.lists(
    st.builds(
        lambda number, free, rack, is_open: room_of(f"n{number:03}", free, rack, is_schedulable=is_open),
        st.integers(0, 999),
        st.integers(0, 8),
        st.sampled_from(["", "r1", "r2"]),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=5,
    unique_by=lambda room: room.node.name,
)


@given(rooms=ROOMS, size=st.integers(1, 3), devices=st.sampled_from([1, 3, 4, 8]), key=st.sampled_from(["", RACK]))
def test_a_group_is_placed_exactly_when_some_way_to_place_it_exists(
    rooms: list[NodeRoom], size: int, devices: int, key: str
) -> None:
    asked = shape(size, devices, key)
    answer = place_group(asked, rooms)
    assert isinstance(answer, Placed) == any(
        is_valid(asked, rooms, [room.node.name for room in chosen])
        for chosen in combinations_with_replacement(rooms, size)
    )
    assert isinstance(answer, Placed) == (free_groups(asked, rooms) > 0)
    if isinstance(answer, Placed):
        assert is_valid(asked, rooms, answer.nodes)
        random.Random(0).shuffle(rooms)
        assert place_group(asked, rooms) == answer
    elif answer.best_domain or not key:
        assert 0 < answer.devices_missing <= size * devices


def is_valid(asked: GroupShape, rooms: Sequence[NodeRoom], chosen: Sequence[str]) -> bool:
    by_name = {room.node.name: room for room in rooms}
    domains = {by_name[name].node.labels.get(asked.domain_key) if asked.domain_key else "" for name in chosen}  # type: ignore[index]
    return (
        len(domains) == 1
        and None not in domains
        and all(by_name[name].node.is_schedulable for name in chosen)  # type: ignore[index]
        and all(count * asked.devices <= by_name[name].free[GPU] for name, count in Counter(chosen).items())  # type: ignore[index]
    )


@given(rooms=ROOMS, size=st.integers(1, 3), devices=st.sampled_from([1, 3, 4, 8]), key=st.sampled_from(["", RACK]))
def test_as_many_groups_fit_as_are_said_to(rooms: list[NodeRoom], size: int, devices: int, key: str) -> None:
    asked = shape(size, devices, key)
    count = 0
    left = {room.node.name: room for room in rooms}
    expected = free_groups(asked, rooms)
    while isinstance(answer := place_group(asked, list(left.values())), Placed):
        count += 1
        for name in answer.nodes:
            left[name] = replace(left[name], free={GPU: left[name].free[GPU] - devices})
    assert count == expected


def test_a_group_finds_its_place_among_10000_nodes_quickly() -> None:
    rooms = [room_of(f"n{number}", number % 9, f"rack-{number % 500}") for number in range(10_000)]
    began = time.perf_counter()
    assert isinstance(place_group(shape(2), rooms), Placed)
    assert time.perf_counter() - began < 0.5
