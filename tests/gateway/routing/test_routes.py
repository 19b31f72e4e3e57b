"""Requests of a shared route are divided by weight among those who live and may be called, and go nowhere else."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping

import pytest
from hanmaru_contracts.names import ModelId
from hanmaru_gateway.routing.routes import pick_model
from hanmaru_gateway.routing.snapshot import Fleet, ServedModel
from hypothesis import given
from hypothesis import strategies as st

A, B, C = (ModelId(f"ml/{name}") for name in "abc")
EVERY = (A, B, C)


def _fleet(live: tuple[ModelId, ...], weights: Mapping[ModelId, int] | None) -> Fleet:
    served = {model: ServedModel(model, "tiny", "0" * 64, 4096, ()) for model in live}
    routes = {"tiny": tuple(sorted(weights if weights is not None else live))}
    return Fleet(served, routes, None if weights is None else {"tiny": weights})


@pytest.mark.parametrize(
    ("weights", "live", "allowed", "shares"),
    [
        ({A: 100}, (A,), (A,), {A: 1.0}),
        ({A: 0}, (A,), (A,), {A: 1.0}),
        ({A: 100}, (), (A,), {}),
        ({A: 50, B: 50}, EVERY, (A, B), {A: 0.5, B: 0.5}),
        ({A: 1, B: 2, C: 7}, EVERY, EVERY, {A: 0.1, B: 0.2, C: 0.7}),
        ({A: 1, B: 2, C: 7}, (A, B), EVERY, {A: 1 / 3, B: 2 / 3}),
        ({A: 1, B: 2, C: 7}, EVERY, (A, B), {A: 1 / 3, B: 2 / 3}),
        ({A: 100, B: 0}, EVERY, (A, B), {A: 1.0}),
        ({A: 100, B: 0}, (B,), (A, B), {}),
        ({A: 0, B: 0}, EVERY, (A, B), {}),
        ({A: 100, B: 0}, EVERY, (B,), {B: 1.0}),
        (None, EVERY, (B, C), {B: 1.0}),
        (None, (C,), (B, C), {C: 1.0}),
        (None, (), (B, C), {}),
    ],
)
def test_requests_are_divided_by_weight(
    weights: Mapping[ModelId, int] | None,
    live: tuple[ModelId, ...],
    allowed: tuple[ModelId, ...],
    shares: Mapping[ModelId, float],
) -> None:
    fleet = _fleet(live, weights)
    picked = Counter(
        model.id if (model := pick_model(fleet, "tiny", allowed, draw)) else None for draw in range(30_000)
    )
    assert {model: count / 30_000 for model, count in picked.items() if model} == pytest.approx(dict(shares), abs=1e-4)


def test_random_ids_divide_as_well_as_counted_ones() -> None:
    fleet = _fleet((A, B), {A: 90, B: 10})
    picked = Counter(pick_model(fleet, "tiny", (A, B), int(secrets.token_hex(16)[-15:], 16)) for _ in range(5_000))
    assert 300 < picked[fleet.models[B]] < 700


@given(
    st.dictionaries(st.sampled_from(EVERY), st.integers(0, 1_000_000), min_size=1),
    st.sets(st.sampled_from(EVERY)),
    st.data(),
    st.integers(0, 16**15 - 1),
)
def test_a_request_goes_to_a_live_model_that_may_be_called_or_nowhere(
    weights: dict[ModelId, int], live: set[ModelId], data: st.DataObject, draw: int
) -> None:
    allowed = tuple(sorted(data.draw(st.sets(st.sampled_from(sorted(weights)), min_size=1))))
    fleet = _fleet(tuple(live), weights)
    model = pick_model(fleet, "tiny", allowed, draw)
    assert model == pick_model(fleet, "tiny", allowed, draw)
    able = [one for one in allowed if one in live and (weights[one] or len(allowed) == 1)]
    assert (model.id in able) if model else not able
