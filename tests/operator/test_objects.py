"""The store: the newest wins, the deleted stay away, and the indexes agree with what is held."""

from __future__ import annotations

from dataclasses import replace

from hanmaru_contracts.names import LABEL_DEPLOYMENT, LABEL_POOL, ReplicaId
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.types import NodeName, ObjectKey, PoolName
from hanmaru_testing.operator_facts import bound_pod
from hypothesis import given
from hypothesis import strategies as st


def entry(name: str = "x", version: int = 1, uid: str = "", kind: str = "ConfigMap", **more: object) -> Entry:
    made = Entry(
        key=ObjectKey(kind, "ns", name),
        uid=uid or f"uid-{name}",
        resource_version=version,
        generation=1,
        created_at=0,
        is_terminating=False,
        owner_uid="",
        labels={LABEL_DEPLOYMENT: "m"},
    )
    return replace(made, **more)  # type: ignore[arg-type]


def pod_entry(name: str, version: int = 1, *, on: str = "n0", replica: str = "r") -> Entry:
    return entry(name, version, kind="Pod", facts=bound_pod(name, on, replica=ReplicaId(replica)))


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    assert store.put(entry(version=5))
    assert not store.put(entry(version=4))
    assert not store.put(entry(version=5))
    found = store.get(entry().key)
    assert found is not None
    assert found.resource_version == 5


def test_a_late_answer_does_not_bring_back_what_was_deleted() -> None:
    store = Store()
    store.put(entry(version=5))
    assert store.remove(entry().key, "uid-x", 9)
    assert not store.put(entry(version=8))
    assert store.get(entry().key) is None


def test_an_object_that_lost_our_label_and_has_it_again_is_back() -> None:
    store = Store()
    store.put(entry(version=5))
    store.remove(entry().key, "uid-x", 9)
    assert store.put(entry(version=10))


def test_a_deletion_of_the_last_bearer_of_a_name_does_not_touch_the_next() -> None:
    store = Store()
    store.put(entry(version=9, uid="new"))
    assert not store.remove(entry().key, "old", 8)
    assert store.get(entry().key) is not None


def test_a_list_removes_what_it_lacks_but_not_what_is_newer_than_it() -> None:
    store = Store()
    for one in (entry("gone", 3), entry("kept", 4), entry("newer", 12), entry("elsewhere", 3, kind="Service")):
        store.put(one)
    store.replace("ConfigMap", [entry("kept", 4), entry("came", 6)], 10)
    assert {e.key.name for e in store.of_kind("ConfigMap")} == {"kept", "came", "newer"}
    assert len(store.of_kind("Service")) == 1


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    store = Store()
    other = entry("other", 3)
    other = replace(other, key=ObjectKey("ConfigMap", "other", "other"))
    store.put(other)
    store.put(entry("gone", 3))
    store.replace("ConfigMap", [], 10, namespace="ns")
    assert store.of_kind("ConfigMap") == [other]


def test_every_change_is_told_with_what_was_before() -> None:
    heard: list[Change] = []
    store = Store(heard.append)
    first, second = entry(version=1), entry(version=2)
    store.put(first)
    store.put(second)
    store.remove(second.key, second.uid, 3)
    assert heard == [Change(None, first), Change(first, second), Change(second, None)]


def test_pods_are_found_by_node_and_by_group_wherever_they_go() -> None:
    store = Store()
    store.put(pod_entry("a", 1, on="n0"))
    store.put(pod_entry("b", 1, on="n0", replica="q"))
    store.put(pod_entry("a", 2, on="n1"))
    assert [p.key.name for p in store.pods_on(NodeName("n0"))] == ["b"]
    assert [p.key.name for p in store.pods_on(NodeName("n1"))] == ["a"]
    assert [p.key.name for p in store.pods_of("ns", ReplicaId("r"))] == ["a"]
    assert {p.key.name for p in store.children("ns", "m")} == {"a", "b"}


def test_groups_are_found_by_pool() -> None:
    store = Store()
    labels = {LABEL_DEPLOYMENT: "m", LABEL_POOL: "a100"}
    store.put(entry("r1", kind="StatefulSet", labels=labels))
    store.put(entry("r2", kind="StatefulSet", labels=labels | {LABEL_POOL: "npu"}))
    store.put(entry("r1", kind="Service", labels=labels))
    assert [group.key.name for group in store.groups_in(PoolName("a100"))] == ["r1"]
    store.remove(ObjectKey("StatefulSet", "ns", "r1"), "uid-r1", 2)
    assert store.groups_in(PoolName("a100")) == []


EVENTS = st.lists(
    st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 3), st.integers(1, 30), st.integers(0, 2)), max_size=40
)


@given(EVENTS)
def test_indexes_hold_exactly_what_is_held(events: list[tuple[str, int, int, int]]) -> None:
    store = Store()
    for what, name, version, node in events:
        if what == "put":
            store.put(pod_entry(f"p{name}", version, on=f"n{node}"))
        else:
            one = pod_entry(f"p{name}", version)
            store.remove(one.key, one.uid, version)
    held = store.of_kind("Pod")
    by_node = [pod for node in range(3) for pod in store.pods_on(NodeName(f"n{node}"))]
    assert sorted(by_node, key=lambda e: e.key.name) == sorted(held, key=lambda e: e.key.name)
    assert len(store.pods_of("ns", ReplicaId("r"))) == len(held) == len(store.children("ns", "m"))


@given(EVENTS, st.randoms())
def test_the_order_of_arrival_does_not_matter(events: list[tuple[str, int, int, int]], random: object) -> None:
    """Watch, list and answers race: per object and version there is one truth."""
    unique = {(name, version): what for what, name, version, _ in events}
    ordered = list(unique.items())

    def play(order: list[tuple[tuple[int, int], str]]) -> set[tuple[str, int]]:
        store = Store()
        for (name, version), what in order:
            one = entry(f"p{name}", version)
            if what == "put":
                store.put(one)
            else:
                store.remove(one.key, one.uid, version)
        return {(e.key.name, e.resource_version) for e in store.of_kind("ConfigMap")}

    shuffled = list(ordered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert play(ordered) == play(shuffled)
