"""Requests to the API server: objects in and out as JSON, each with a deadline, refusals as `api_errors`.

`apply` is the only writer of objects and `resync` the only lister; `leader` has a client of its own for the lease.
No cache and no decision is here. What `kinds` does not list is refused before it is sent, and so is any write while
`time_left_s` says that we do not hold the lease: a write never outlives the time in which nobody else may lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import httpx2
import msgspec
from hanmaru_contracts.names import FIELD_MANAGER

from hanmaru_operator import kinds
from hanmaru_operator.api_errors import NotFound, NotLeader, Unreachable, VerbNotListed, from_answer
from hanmaru_operator.connection import REQUEST_TIMEOUT_S
from hanmaru_operator.kinds import Api, Verb
from hanmaru_operator.types import Manifest, ObjectKey

PAGE_OBJECTS = 200
"""Objects of one page of a list: about 2 MB of nodes, and ten times that while they are Python objects."""
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

Propagation = Literal["Background", "Foreground", "Orphan"]
JsonPatch = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list."""

    raw_items: list[msgspec.Raw]
    resource_version: int
    """Of the whole list: the same on each page."""

    def items(self) -> Iterator[Manifest]:
        """The objects, decoded one after the other."""
        return (msgspec.json.decode(raw, type=dict[str, Any]) for raw in self.raw_items)


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion")
    next: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


def key_of(manifest: Manifest) -> ObjectKey:
    """Which object a manifest is of."""
    metadata = manifest["metadata"]
    return ObjectKey(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def _unlimited() -> float:
    return float("inf")


def _uncounted(verb: str, code: int) -> None:
    """Nobody counts requests."""


class Cluster:
    """A client of one API server. `http` belongs to the caller."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        own_namespace: str,
        tenant_namespaces: Sequence[str] = (),
        time_left_s: Callable[[], float] = _unlimited,
        count_request: Callable[[str, int], None] = _uncounted,
    ) -> None:
        """`time_left_s`: for how long we surely lead, 0 or less when not; only writes ask.

        `count_request` is told each verb and HTTP status (0: no answer).
        """
        self._http = http
        self._own_namespace = own_namespace
        self._tenant_namespaces = frozenset(tenant_namespaces)
        self._time_left_s = time_left_s
        self._count = count_request

    async def pages(
        self, kind: str, *, namespace: str = "", labels: str = "", page_objects: int = PAGE_OBJECTS
    ) -> AsyncIterator[Page]:
        """All objects of a kind, in pages of one consistent list. Raises ClusterError; Gone: begin anew."""
        api = self._allowed(kind, "list", namespace)
        query: dict[str, str] = {"limit": str(page_objects)} | ({"labelSelector": labels} if labels else {})
        while True:
            answer = _decoded(await self._exchange("list", "GET", api.path(namespace), query), _List)
            yield Page(answer.items or [], int(answer.metadata.resource_version))
            if not answer.metadata.next:
                return
            query["continue"] = answer.metadata.next

    async def get(self, key: ObjectKey) -> Manifest:
        """One object. Raises ClusterError."""
        return await self._send("get", "GET", self._path(key, "get"), {})

    async def create(self, manifest: Manifest) -> Manifest:
        """Make an object, which must not exist. Raises ClusterError; Conflict: it does."""
        key = key_of(manifest)
        api = self._allowed(key.kind, "create", key.namespace)
        return await self._send("create", "POST", api.path(key.namespace), _MANAGED, manifest)

    async def update(self, manifest: Manifest) -> Manifest:
        """Replace an object; `metadata.resourceVersion` must be as read. Raises ClusterError; Conflict: it is not."""
        return await self._send("update", "PUT", self._path(key_of(manifest), "update"), _MANAGED, manifest)

    async def apply(self, manifest: Manifest, *, uid: str = "") -> Manifest:
        """Make the fields of `manifest` so, and no others; the object as it is then. Raises ClusterError.

        Fields that others own are taken over. With `uid`, only that very object is changed: else Conflict.
        """
        path = self._path(key_of(manifest), "patch")
        return await self._send("apply", "PATCH", path, _FORCED, _with_uid(manifest, uid), _APPLY)

    async def apply_status(self, key: ObjectKey, status: Mapping[str, Any], *, uid: str = "") -> Manifest:
        """The same for the status of one of our three kinds."""
        api = kinds.api_of(key.kind)
        self._check("patch" in api.status_verbs, key.kind, "patch the status of")
        metadata = {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
        manifest = {"apiVersion": api.api_version, "kind": api.kind, "metadata": metadata, "status": status}
        path = api.path(key.namespace, key.name, "status")
        return await self._send("apply_status", "PATCH", path, _FORCED, _with_uid(manifest, uid), _APPLY)

    async def patch(
        self, key: ObjectKey, changes: Mapping[str, Any] | JsonPatch, *, uid: str = "", resource_version: int = 0
    ) -> Manifest:
        """Change an object: a mapping is merged into it, a sequence is a JSON patch. Raises ClusterError.

        With `uid` or `resource_version`, only that object or that version of it is changed: else Conflict (merge) or
        Invalid (JSON patch, whose tests failed).
        """
        path = self._path(key, "patch")
        metadata = ({"uid": uid} if uid else {}) | (
            {"resourceVersion": str(resource_version)} if resource_version else {}
        )
        if isinstance(changes, Mapping):
            body: Any = {**changes, "metadata": {**changes.get("metadata", {}), **metadata}}
            return await self._send("patch", "PATCH", path, _MANAGED, body, _MERGE)
        tests = [{"op": "test", "path": f"/metadata/{field}", "value": value} for field, value in metadata.items()]
        return await self._send("patch", "PATCH", path, _MANAGED, [*tests, *changes], _JSON_PATCH)

    async def delete(
        self,
        key: ObjectKey,
        *,
        uid: str = "",
        propagation: Propagation = "Background",
        grace_period_s: int | None = None,
    ) -> Manifest | None:
        """Ask for an object's deletion; no such object is as good. The answer, mostly the object. Raises ClusterError.

        With `uid`, only that very object goes; another one of that name gives Conflict.
        """
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            body["gracePeriodSeconds"] = grace_period_s
        try:
            return await self._send("delete", "DELETE", self._path(key, "delete"), {}, body)
        except NotFound:
            return None

    def may(self, verb: Verb, key: ObjectKey) -> bool:
        """Whether `kinds` lists the verb for an object in its place."""
        return self._lists(kinds.api_of(key.kind), verb, key.namespace)

    def _lists(self, api: Api, verb: Verb, namespace: str) -> bool:
        return (
            verb in api.cluster_verbs
            or (namespace in self._tenant_namespaces and verb in api.tenant_namespace_verbs)
            or (namespace == self._own_namespace and verb in api.own_namespace_verbs)
        )

    def _path(self, key: ObjectKey, verb: Verb) -> str:
        return self._allowed(key.kind, verb, key.namespace).path(key.namespace, key.name)

    def _allowed(self, kind: str, verb: Verb, namespace: str) -> Api:
        """The kind, when `kinds` lists the verb for that place."""
        api = kinds.api_of(kind)
        self._check(
            self._lists(api, verb, namespace), f"{kind} in namespace {namespace!r}" if namespace else kind, verb
        )
        return api

    def _check(self, is_listed: bool, what: str, verb: str) -> None:
        if not is_listed:
            raise VerbNotListed(f"operator/hanmaru_operator/kinds.py does not list: {verb} {what}")

    async def _send(
        self, verb: str, method: str, path: str, query: Mapping[str, str], body: Any = None, content: str = _JSON
    ) -> Manifest:
        return _decoded(await self._exchange(verb, method, path, query, body, content), dict[str, Any])

    async def _exchange(
        self, verb: str, method: str, path: str, query: Mapping[str, str], body: Any = None, content: str = _JSON
    ) -> bytes:
        deadline_s = REQUEST_TIMEOUT_S if method == "GET" else min(REQUEST_TIMEOUT_S, self._time_left_s())
        if deadline_s <= 0:
            raise NotLeader(f"this process does not hold the lease, so it may not {verb} {path}")
        code = 0
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._http.request(
                    method,
                    path,
                    params=query,
                    content=None if body is None else msgspec.json.encode(body),
                    headers={"Content-Type": content, "Accept": _JSON},
                )
            code = answer.status_code
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Unreachable(f"no answer to {verb} {path}: {error or type(error).__name__}") from error
        finally:
            self._count(verb, code)
        if code >= HTTPStatus.BAD_REQUEST:
            raise from_answer(code, answer.content, answer.headers)
        return answer.content


_T = TypeVar("_T")


def _decoded(answer: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:  # something in between answered
        raise Unreachable(f"the API server's answer is not what it should be: {error}") from error


_MANAGED = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
_FORCED = {**_MANAGED, "force": "true"}


def _with_uid(manifest: Manifest, uid: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "uid": uid}} if uid else manifest
