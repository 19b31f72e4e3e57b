"""What a pool has free is asked again when it may have changed, and not for a heartbeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.reconcile.view import View
from hanmaru_operator.types import ObjectKey
from hanmaru_testing.operator_facts import bound_pod, node


def entry(kind: str, version: int = 1, **more: Any) -> Entry:
    made = Entry(
        key=ObjectKey(kind, "ns", "x"),
        uid=f"uid-{kind}",
        resource_version=version,
        generation=1,
        created_at=0,
        is_terminating=False,
        owner_uid="",
        labels={},
    )
    return replace(made, **more)


POD = entry("Pod", facts=bound_pod("x"))
NODE = entry("Node", facts=node("n0"))


@pytest.mark.parametrize(
    ("before", "after", "may_differ"),
    [
        (None, POD, True),
        (POD, entry("Pod", 2, facts=bound_pod("x", on="n1")), True),
        (POD, replace(POD, resource_version=2), False),
        (None, NODE, True),
        (NODE, entry("Node", 2, facts=node("n0", devices=4)), True),
        (NODE, replace(NODE, resource_version=2), False),
        (None, entry("StatefulSet"), True),
        (None, entry("Service"), False),
        (None, entry("Secret"), False),
    ],
)
def test_room_is_another_only_after_what_takes_or_gives_it(
    before: Entry | None, after: Entry, may_differ: bool
) -> None:
    store = Store(lambda change: view.changed(change))
    view = View(store)
    if before is not None:
        store.put(before)
    version = view.room_version
    store.put(after)
    assert (view.room_version != version) is may_differ
    store.remove(after.key, after.uid, 9)
    assert (view.room_version != version) is (after.key.kind not in ("Service", "Secret"))
