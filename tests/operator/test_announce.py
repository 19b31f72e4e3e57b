"""Events: told once, counted when they repeat, and never a flood."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_operator.announce import BURST, COUNT_EVERY_S, REFILL_S, SERIES_S, Again, Announcer, First, Ledger
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.connection import open_http, read_connection
from hanmaru_operator.observe import entry_of
from hanmaru_operator.types import EventNote
from hypothesis import given
from hypothesis import strategies as st

NOTE = EventNote("Warning", "Unschedulable", "8 devices are missing")


def test_the_same_thing_is_told_once_then_counted_once_a_minute() -> None:
    ledger = Ledger()
    first = ledger.decide("u", "m", NOTE, 0)
    assert isinstance(first, First)
    assert [ledger.decide("u", "m", NOTE, second) for second in range(1, 10)] == [None] * 9
    assert ledger.decide("u", "m", NOTE, COUNT_EVERY_S) == Again(first.name, 11)


def test_after_a_while_it_is_news_again() -> None:
    ledger = Ledger()
    first = ledger.decide("u", "m", NOTE, 0)
    again = ledger.decide("u", "m", NOTE, SERIES_S + 1)
    assert isinstance(first, First)
    assert isinstance(again, First)
    assert first.name != again.name


def test_ever_new_words_do_not_flood() -> None:
    ledger = Ledger()
    notes = [EventNote("Normal", "R", f"message {i}") for i in range(500)]
    told = [ledger.decide("u", "m", note, 0) for note in notes]
    assert sum(each is not None for each in told) == BURST
    assert isinstance(ledger.decide("u", "m", notes[-1], REFILL_S), First)
    assert isinstance(ledger.decide("another", "m", notes[0], 0), First)


@given(st.text("abc-.", min_size=1, max_size=253))
def test_names_are_names_whatever_the_objects_is(name: str) -> None:
    told = Ledger().decide("u", name, NOTE, 0)
    assert isinstance(told, First)
    assert len(told.name) <= 253
    assert told.name.rpartition(".")[2].isalnum()


@pytest.mark.usefixtures("crds")
async def test_people_see_them_with_kubectl(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/serving.hanmaru.dev/v1alpha1/namespaces/{namespace}/tenants"
    tenant: dict[str, Any] = {
        "apiVersion": "serving.hanmaru.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "t"},
        "spec": {"credentials": [{"name": "a", "type": "APIKey", "apiKey": {"sha256": "0" * 64}}]},
    }
    about = entry_of("Tenant", control_plane.api.create(path, tenant))
    now = 0.0
    async with open_http(read_connection({"KUBECONFIG": str(control_plane.kubeconfig)})) as http:
        announcer = Announcer(Cluster(http, own_namespace="x"), instance="operator-0_1", clock=lambda: now)
        task = asyncio.create_task(announcer.run())
        announcer.record(about, NOTE)
        await _until_events(control_plane, namespace, lambda event: event["reason"] == "Unschedulable")
        now = COUNT_EVERY_S + 1
        announcer.record(about, NOTE)
        await _until_events(control_plane, namespace, lambda event: (event.get("series") or {}).get("count") == 2)
        task.cancel()
        await asyncio.wait([task])
    shown = await asyncio.to_thread(control_plane.kubectl, "-n", namespace, "describe", "tenant", "t")
    assert "8 devices are missing" in shown


async def _until_events(plane: ControlPlane, namespace: str, is_it: Any) -> None:
    deadline = time.monotonic() + 15
    while True:
        items = json.loads(await asyncio.to_thread(plane.kubectl, "-n", namespace, "get", "events", "-o", "json"))
        if any(is_it(event) for event in items["items"]):
            return
        assert time.monotonic() < deadline, items
        await asyncio.sleep(0.2)
