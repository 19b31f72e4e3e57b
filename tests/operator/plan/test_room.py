"""What is free on a node is what nobody holds: ours or not, bound or on the way."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hanmaru_operator.plan.room import room, use_by_node
from hanmaru_testing.operator_facts import GPU, bound_pod, node, pod


@pytest.mark.parametrize(
    ("given", "free"),
    [
        pytest.param(pod(), 8, id="gated"),
        pytest.param(bound_pod(), 6, id="bound"),
        pytest.param(bound_pod(replica=None, namespace="kube-system"), 6, id="not ours"),
        pytest.param(bound_pod(is_terminating=True), 6, id="terminating"),
        pytest.param(bound_pod(has_ended=True), 8, id="ended"),
        pytest.param(bound_pod(node="elsewhere"), 8, id="elsewhere"),
        pytest.param(pod(gates=(), planned_node="n0"), 6, id="planned"),
        pytest.param(pod(planned_node="n0"), 6, id="planned, gate still on"),
        pytest.param(bound_pod(planned_node="elsewhere"), 6, id="bound, whatever was planned"),
        pytest.param(pod(gates=()), 8, id="about to be scheduled somewhere"),
    ],
)
def test_a_pod_takes_room_where_it_is_bound_or_planned(given: Any, free: float) -> None:
    (left,) = room([node("n0")], use_by_node([replace(given, requests={GPU: 2.0})]))
    assert left.free == {GPU: free}


def test_pods_themselves_are_counted() -> None:
    (left,) = room([node("n0", allocatable={"pods": 10.0})], use_by_node([bound_pod("a"), bound_pod("b")]))
    assert left.free["pods"] == 8


def test_a_node_that_shrank_under_its_pods_has_less_than_nothing() -> None:
    (left,) = room([node("n0", devices=7)], use_by_node([bound_pod()]))
    assert left.free[GPU] == -1


def test_rooms_of_10000_nodes_are_made_quickly() -> None:
    nodes = [node(f"n{number}", allocatable={"cpu": 64.0, "memory": 1e12, "pods": 110.0}) for number in range(10_000)]
    requests = {GPU: 4.0, "cpu": 8.0, "memory": 1e11}
    pods = [bound_pod(f"p{number}", f"n{number % 10_000}", requests=requests) for number in range(20_000)]
    began = time.perf_counter()
    rooms = room(nodes, use_by_node(pods))
    assert time.perf_counter() - began < 1.0
    assert {each.free[GPU] for each in rooms} == {0.0}
