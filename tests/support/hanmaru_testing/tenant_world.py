"""A test's Tenants and Secrets on the real API server, and what gateways would read of them from Redis.

Every key that a test uses is made here, so that a test can look for all of them in what people see.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_contracts.crd.kinds import API_VERSION, GROUP, VERSION
from hanmaru_contracts.keys import api_key_digest, new_api_key
from hanmaru_contracts.redis_keys import ROUTES, TENANTS

from hanmaru_testing.operator_world import Manifest
from hanmaru_testing.redis_server import RedisServer

KEY = "key"
"""The entry of every Secret that holds a key."""


class TenantWorld:
    """Makes Tenants in the operator's namespace unless told otherwise. A context manager: they go with it."""

    def __init__(self, api: ApiClient, redis: RedisServer, namespace: str, suffix: str, keys: list[str]) -> None:
        """`suffix` makes names of tenants unique. `keys` gets every key that is made."""
        self._api = api
        self._redis = redis.client()
        self._namespace = namespace
        self._suffix = suffix
        self._keys = keys
        self._paths: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._paths:
            self._api.delete(path)
        self._redis.close()

    # --- objects -----------------------------------------------------------------------------------------------------

    def new_key(self) -> str:
        """A key nobody has."""
        key = new_api_key()
        self._keys.append(key)
        return key

    def named(self, name: str) -> str:
        """The tenant's full name."""
        return f"{name}-{self._suffix}"

    def create(self, name: str, *, namespace: str = "", **spec: Any) -> Manifest:
        """A Tenant."""
        where = namespace or self._namespace
        full = self.named(name)
        self._paths.append(self._path(name, where))
        metadata = {"name": full, "namespace": where}
        manifest = {"apiVersion": API_VERSION, "kind": "Tenant", "metadata": metadata, "spec": spec}
        return self._api.create(f"/apis/{GROUP}/{VERSION}/namespaces/{where}/tenants", manifest)

    def patch(self, name: str, **spec: Any) -> None:
        """Merge into its spec."""
        self._api.patch(self._path(name), {"spec": spec})

    def delete(self, name: str) -> None:
        """Delete it."""
        self._api.delete(self._path(name))

    def get(self, name: str, *, namespace: str = "") -> Manifest:
        """It, as the API server shows it."""
        return self._api.get(self._path(name, namespace))

    def write_secret(self, name: str, value: str | bytes, *, entry: str = KEY) -> str:
        """A Secret with this value, made or changed; its name."""
        raw = value.encode() if isinstance(value, str) else value
        full, data = self.named(name), {entry: base64.b64encode(raw).decode()}
        path = f"/api/v1/namespaces/{self._namespace}/secrets"
        try:
            self._api.patch(f"{path}/{full}", {"data": data})
        except ApiError as error:
            if error.status != 404:
                raise
            self._paths.append(f"{path}/{full}")
            self._api.create(path, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": full}, "data": data})
        return full

    def delete_secret(self, name: str) -> None:
        """Delete a Secret."""
        self._api.delete(f"/api/v1/namespaces/{self._namespace}/secrets/{self.named(name)}")

    # --- what gateways read ------------------------------------------------------------------------------------------

    def granted(self, name: str) -> dict[str, Any] | None:
        """The Tenant as Redis has it; None: it has none of that name."""
        held: Any = self._redis.hget(TENANTS, self.named(name))
        return json.loads(held) if held is not None else None

    def hashes(self, name: str) -> set[str]:
        """Of the keys that work for it now."""
        found = self.granted(name) or {}
        return {credential["apiKey"]["sha256"] for credential in found.get("credentials", ())}

    def models(self, name: str) -> list[str]:
        """It may call, `namespace/name`."""
        return [f"{ref['namespace']}/{ref['name']}" for ref in (self.granted(name) or {}).get("models", ())]

    def route(self, name: str) -> dict[str, int]:
        """The models behind a route and their weights."""
        held: Any = self._redis.hget(ROUTES, name)
        found: dict[str, int] = json.loads(held) if held is not None else {}
        return found

    def _path(self, name: str, namespace: str = "") -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace or self._namespace}/tenants/{self.named(name)}"


def by_hash(*keys: str, **more: Any) -> list[Mapping[str, Any]]:
    """Credentials that give these keys' hashes."""
    return [{"name": f"k{i}", "apiKey": {"sha256": api_key_digest(key)}, **more} for i, key in enumerate(keys)]


def by_secret(*secrets: str) -> list[Mapping[str, Any]]:
    """Credentials whose keys are in these Secrets."""
    return [
        {"name": f"k{i}", "apiKey": {"secretRef": {"name": secret, "key": KEY}}} for i, secret in enumerate(secrets)
    ]


def digests(keys: Sequence[str]) -> set[str]:
    """What Redis holds of these keys."""
    return {api_key_digest(key) for key in keys}
