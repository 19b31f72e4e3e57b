"""What Redis holds of tenants and of route names: one hash each, and a version that changes with it.

The operator writes both tables; where there is none, a gateway writes the tenants of its file. Gateways follow the
versions. Whoever writes decides when; what is written is decided here, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.names import ModelId, TenantId
from hanmaru_contracts.redis_keys import ROUTES, ROUTES_VERSION, TENANTS, TENANTS_VERSION

Routes = Mapping[str, Mapping[ModelId, int]]
"""Route name -> the models behind it, each with its weight; all of one namespace."""


@dataclass(frozen=True, slots=True)
class Table:
    """One hash as it should be."""

    key: str
    version_key: str
    entries: Mapping[str, str] = field(repr=False)
    """In order of their fields."""
    digest: str
    """Of all entries."""

    def is_version(self, version: bytes | None) -> bool:
        """Whether Redis's version speaks of these entries. What follows a dot tells one writing from another."""
        return version is not None and version.partition(b".")[0] == self.digest.encode()


def tenants_table(tenants: Mapping[TenantId, TenantSpec]) -> Table:
    """Tenants, each as JSON; of keys there is the hash alone, because every credential must be given by its hash."""
    entries: dict[str, str] = {
        tenant: tenants[tenant].model_dump_json(by_alias=True, exclude={"name"}, exclude_none=True)
        for tenant in sorted(tenants)
    }
    return _table(TENANTS, TENANTS_VERSION, entries)


def routes_table(routes: Routes) -> Table:
    """Routes, each with its models and their weights as JSON."""
    entries = {route: json.dumps(dict(routes[route]), sort_keys=True) for route in sorted(routes)}
    return _table(ROUTES, ROUTES_VERSION, entries)


_weights = msgspec.json.Decoder(dict[str, Annotated[int, msgspec.Meta(ge=0)]])


def read_routes(entries: Mapping[bytes, bytes]) -> tuple[dict[str, dict[ModelId, int]], tuple[str, ...]]:
    """(routes, names of entries that are none). A broken entry is a route without models: nobody else may have it."""
    routes: dict[str, dict[ModelId, int]] = {}
    broken = []
    for raw_name, raw_weights in entries.items():
        name = raw_name.decode("utf-8", "replace")
        try:
            routes[name] = {ModelId(model): weight for model, weight in _weights.decode(raw_weights).items()}
        except msgspec.DecodeError:
            routes[name] = {}
            broken.append(name)
    return routes, tuple(broken)


def _table(key: str, version_key: str, entries: dict[str, str]) -> Table:
    return Table(key, version_key, entries, hashlib.sha256(json.dumps(list(entries.items())).encode()).hexdigest())
