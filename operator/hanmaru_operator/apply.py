"""Makes objects be as rendered, and only where they are not: the one writer of the reconcilers.

Server-side apply, with our field manager and by force, because what we render is ours. What was sent and what the
object looked like afterwards is remembered by object, so that looking again costs no request, and a hand's edit is
put right. An object that another owner controls is never touched. Answers go into the store at once: the next
reconcile reads this one's writes. Which objects there should be is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_operator.api_errors import Conflict, Invalid, NotFound
from hanmaru_operator.cluster import Cluster, JsonPatch, Propagation, key_of
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry, entry_of
from hanmaru_operator.types import Manifest, ObjectKey

DOUBTED_AFTER_S = 1.0
UNWATCHED_BELIEVED_S = 3600.0
"""How long a Secret in a user's namespace, which we may write but not read, is believed to be as it was sent."""
_TOGETHER = 12
"""Objects applied at once by `ensure_all`, of all reconciles: the client keeps 20 connections."""
_NEVER_AGAIN = 2**63
"""A version that no object reaches."""
_encoder = msgspec.json.Encoder(order="deterministic")


class ForeignObject(HanmaruError):  # noqa: N818 - as in `api_errors`
    """An object of the name we need is there and is not ours: it stays as it is, and a person must choose."""

    def __init__(self, key: ObjectKey) -> None:
        where = f"{key.namespace}/{key.name}" if key.namespace else key.name
        super().__init__(
            ErrorCode.INVALID_REQUEST,
            f"{key.kind} {where} exists and belongs to somebody else; rename or delete it",
        )
        self.key = key


@dataclass(frozen=True, slots=True)
class _Applied:
    """What was sent last, and what the object was then."""

    manifest_hash: bytes
    uid: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Unwatched:
    """The same of an object that we may not watch, and when it was."""

    manifest_hash: bytes
    entry: Entry
    at: float


class Applier:
    """Writes objects and remembers what it wrote."""

    def __init__(self, cluster: Cluster, store: Store, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._store = store
        self._clock = clock
        self._slots = asyncio.Semaphore(_TOGETHER)
        self._applied: dict[ObjectKey, _Applied] = {}
        self._unwatched: dict[ObjectKey, _Unwatched] = {}

    async def ensure(self, manifest: Manifest) -> Entry:
        """Have an object be as `manifest` says, whose first owner reference is its controller.

        Writes only when the manifest is another than last time or the object is another than it was left. Raises
        ForeignObject, and ClusterError. One that is being deleted is left alone: the watch tells when it is gone.
        """
        key = key_of(manifest)
        manifest_hash = hashlib.sha256(_encoder.encode(manifest)).digest()
        if not self._cluster.may("watch", key):
            return await self._ensure_unwatched(key, manifest, manifest_hash)
        seen = self._store.get(key)
        if seen is None:
            await self._refuse_foreign(key, manifest)
            return await self._apply(key, manifest, manifest_hash, "")
        if seen.owner_uid != _owner_uid(manifest):
            raise ForeignObject(key)
        if seen.is_terminating or self._applied.get(key) == _Applied(manifest_hash, seen.uid, seen.digest):
            return seen
        return await self._apply(key, manifest, manifest_hash, seen.uid)

    async def ensure_all(self, manifests: Iterable[Manifest]) -> None:
        """`ensure` for objects that come to be in no order, together. Raises what the first to fail raised."""

        async def ensure(manifest: Manifest) -> None:
            async with self._slots:
                await self.ensure(manifest)

        try:
            async with asyncio.TaskGroup() as group:
                for manifest in manifests:
                    group.create_task(ensure(manifest))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def ensure_status(self, seen: Entry, status: Mapping[str, Any]) -> None:
        """Have one of the three kinds show this status, all of it ours; writes only when it shows another."""
        if _encoder.encode(status) != seen.status_json:
            self._read(seen.key, await self._cluster.apply_status(seen.key, status, uid=seen.uid))

    async def patch(self, seen: Entry, changes: Mapping[str, Any] | JsonPatch, *, same_version: bool = False) -> Entry:
        """Change this very object as `Cluster.patch` says; with `same_version` only if it is as `seen`."""
        version = seen.resource_version if same_version else 0
        answer = await self._cluster.patch(seen.key, changes, uid=seen.uid, resource_version=version)
        return self._read(seen.key, answer)

    async def delete(
        self, seen: Entry, *, propagation: Propagation = "Background", grace_period_s: int | None = None
    ) -> None:
        """Ask for the deletion of this very object; gone already, or another of its name, is as good."""
        try:
            answer = await self._cluster.delete(
                seen.key, uid=seen.uid, propagation=propagation, grace_period_s=grace_period_s
            )
        except Conflict:
            return
        if answer is not None and "deletionTimestamp" in answer["metadata"]:
            self._read(seen.key, answer)

    async def delete_at_once(self, seen: Entry) -> None:
        """Delete an object without finalizers, and believe it: no late event brings it back into the store.

        A plan made on what was read before the watch tells would delete and make the same things twice.
        """
        await self.delete(seen)
        self._store.remove(seen.key, seen.uid, _NEVER_AGAIN)

    def doubt_unwatched(self, key: ObjectKey) -> None:
        """It is about to be needed: look again with the next `ensure`, unless that was just done."""
        last = self._unwatched.get(key)
        if last is not None and self._clock() - last.at >= DOUBTED_AFTER_S:
            del self._unwatched[key]

    async def delete_unwatched(self, key: ObjectKey, owner_uid: str) -> None:
        """Delete an object that we may not read, if that owner controls it."""
        test = {"op": "test", "path": "/metadata/ownerReferences/0/uid", "value": owner_uid}
        try:
            answer = await self._cluster.patch(key, [test])
            await self._cluster.delete(key, uid=answer["metadata"]["uid"])
        except (NotFound, Invalid, Conflict):
            pass  # gone, or another's
        self._unwatched.pop(key, None)

    async def prune(self, stale: Iterable[Entry]) -> None:
        """Delete what is not wanted any more; what is being deleted is not asked again."""
        for seen in list(stale):
            if not seen.is_terminating:
                await self.delete(seen)

    def forget(self, key: ObjectKey) -> None:
        """The object is gone: what was sent for it is of no use."""
        self._applied.pop(key, None)

    async def _ensure_unwatched(self, key: ObjectKey, manifest: Manifest, manifest_hash: bytes) -> Entry:
        """Nobody tells when it changes, so what was sent is believed for a while only."""
        now = self._clock()
        last = self._unwatched.get(key)
        if last and last.manifest_hash == manifest_hash and now - last.at < UNWATCHED_BELIEVED_S:
            return last.entry
        await self._refuse_foreign(key, manifest)
        answer = entry_of(key.kind, await self._cluster.apply(manifest))
        entry = replace(answer, data_json=b"")  # a replica's key stays in nobody's memory
        self._unwatched.pop(key, None)
        self._unwatched[key] = _Unwatched(manifest_hash, entry, now)
        self._forget_unbelieved(now)
        return entry

    def _forget_unbelieved(self, now: float) -> None:
        """They lie in the order in which they were sent; those of replicas that are gone are asked for no more."""
        while self._unwatched:
            key, oldest = next(iter(self._unwatched.items()))
            if now - oldest.at < UNWATCHED_BELIEVED_S:
                return
            del self._unwatched[key]

    async def _refuse_foreign(self, key: ObjectKey, manifest: Manifest) -> None:
        """Ask whether the object is there and whose it is, with the right to write alone: by a test without a patch."""
        test = {"op": "test", "path": "/metadata/ownerReferences/0/uid", "value": _owner_uid(manifest)}
        try:
            await self._cluster.patch(key, [test])
        except NotFound:
            return
        except Invalid as error:
            raise ForeignObject(key) from error

    async def _apply(self, key: ObjectKey, manifest: Manifest, manifest_hash: bytes, uid: str) -> Entry:
        entry = self._read(key, await self._cluster.apply(manifest, uid=uid))
        self._applied[key] = _Applied(manifest_hash, entry.uid, entry.digest)
        return entry

    def _read(self, key: ObjectKey, answer: Manifest) -> Entry:
        entry = entry_of(key.kind, answer)
        self._store.put(entry)
        return entry


def _owner_uid(manifest: Manifest) -> str:
    owner = manifest["metadata"]["ownerReferences"][0]
    assert owner["controller"], "what we apply has its controller as first owner"
    uid: str = owner["uid"]
    return uid
