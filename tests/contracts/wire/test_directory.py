"""Tables of tenants and routes: the same words give the same version, and a broken entry opens nothing."""

from __future__ import annotations

from hanmaru_contracts.crd.v1alpha1.tenant import NamedTenant, TenantSpec
from hanmaru_contracts.names import ModelId, TenantId
from hanmaru_contracts.wire.directory import read_routes, routes_table, tenants_table
from hypothesis import given
from hypothesis import strategies as st

A, B = TenantId("a"), TenantId("b")
_names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
_models = st.builds(lambda namespace, name: ModelId(f"{namespace}/{name}"), _names, _names)
_routes = st.dictionaries(_names, st.dictionaries(_models, st.integers(0, 1_000_000), max_size=4), max_size=6)


def test_the_order_of_tenants_is_not_part_of_the_version() -> None:
    one, other = TenantSpec(), TenantSpec(suspended=True)
    assert tenants_table({A: one, B: other}) == tenants_table({B: other, A: one})
    assert tenants_table({A: one, B: other}).digest != tenants_table({A: other, B: one}).digest


def test_a_files_tenant_is_written_like_an_objects() -> None:
    assert tenants_table({A: NamedTenant(name="a", suspended=True)}) == tenants_table({A: TenantSpec(suspended=True)})


def test_a_version_may_tell_one_writing_from_another() -> None:
    table = tenants_table({A: TenantSpec()})
    assert table.is_version(table.digest.encode())
    assert table.is_version(f"{table.digest}.1f".encode())
    assert not table.is_version(None)
    assert not table.is_version(b"")
    assert not table.is_version(table.digest[:-1].encode())


@given(_routes)
def test_routes_survive_their_way_through_redis(routes: dict[str, dict[ModelId, int]]) -> None:
    table = routes_table(routes)
    raw = {name.encode(): weights.encode() for name, weights in table.entries.items()}
    assert read_routes(raw) == (routes, ())
    assert routes_table(dict(reversed(routes.items()))) == table


def test_a_broken_entry_is_a_route_without_models() -> None:
    raw = {b"a": b'{"x/a": 1}', b"b": b"[]", b"c": b'{"x/c": -1}', b"d": b"\xff", b"e": b'{"x/e": "1"}'}
    assert read_routes(raw) == ({"a": {"x/a": 1}, "b": {}, "c": {}, "d": {}, "e": {}}, ("b", "c", "d", "e"))
