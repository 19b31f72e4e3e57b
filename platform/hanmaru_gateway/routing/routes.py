"""Which model of a route a request goes to, among those its caller may use. Pure; called by `flow`.

Deployments of one namespace may share a route by weight. A weight divides among several: the only one a caller may use
takes all its requests, whatever its weight, and where there are several, one of weight 0 takes none. Those without a
live worker give their share to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from hanmaru_contracts.names import ModelId

from hanmaru_gateway.routing.snapshot import Fleet, ServedModel

Share = tuple[ServedModel, int]
"""A model that takes requests of a route, and its weight."""


def shares(fleet: Fleet, route: str, allowed: Sequence[ModelId]) -> list[Share]:
    """The models that take requests of the route, with weights above 0. `allowed`: those of it the caller may use."""
    if fleet.weights is None or len(allowed) == 1:
        return [(fleet.models[model], 1) for model in allowed if model in fleet.models][:1]
    weights = fleet.weights.get(route, {})
    return [(fleet.models[model], weight) for model in allowed if model in fleet.models and (weight := weights[model])]


def pick_model(fleet: Fleet, route: str, allowed: Sequence[ModelId], draw: int) -> ServedModel | None:
    """The model for one request; None when none has a live worker. `draw` is a large number, evenly distributed."""
    if len(allowed) == 1:
        return fleet.models.get(allowed[0])
    sharing = shares(fleet, route, allowed)
    if not sharing:
        return None
    point = draw % sum(weight for _, weight in sharing)
    for model, weight in sharing:
        point -= weight
        if point < 0:
            return model
    raise AssertionError("the point lies below the sum of all weights")
