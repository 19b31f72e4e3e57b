"""Lists what is watched: before the first reconcile, whenever the watch may have missed something, and now and then.

`main` runs it while we lead; `watch` tells it what is uncertain. A list is taken when kopf has been quiet about the
kind for a moment, because kopf lists too and each object it lists is such a sign. A kind that is not served yet (a CRD
is missing) and an API server that does not answer are waited for. What to reconcile is decided by `triggers`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from hanmaru_contracts.log import log_event

from hanmaru_operator.api_errors import ClusterError, Gone, NotFound
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.objects import Store
from hanmaru_operator.observe import Entry, readable_entry
from hanmaru_operator.watch import Followed

_log = logging.getLogger(__name__)

RESYNC_INTERVAL_S = 600.0
QUIET_S = 3.0
"""How long a kind must be quiet before it is listed again: kopf's pages of a long list come faster than that."""
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 15.0
_LISTS_AT_ONCE = 3


class Resync:
    """Keeps the store whole."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        follow: Collection[Followed],
        *,
        clock: Callable[[], float],
        on_synced: Callable[[], None],
        interval_s: float = RESYNC_INTERVAL_S,
    ) -> None:
        """`on_synced` is called after each round in which every kind was listed: the first, and one each interval."""
        self._cluster = cluster
        self._store = store
        self._follow = {one.api.kind: one for one in follow}
        self._clock = clock
        self._on_synced = on_synced
        self._interval_s = interval_s
        self._due: dict[str, float] = {}
        self._wake = {kind: asyncio.Event() for kind in self._follow}
        self._pending = set(self._follow)
        """Kinds not yet listed in this round."""
        self._again: set[str] = set()
        self._round_ended = asyncio.Event()
        self._slots = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._missing: set[str] = set()
        self.is_synced = False
        """Whether every kind has been listed since the start."""

    @property
    def missing_kinds(self) -> list[str]:
        """Kinds that the API server does not serve: their CRDs are missing."""
        return sorted(self._missing)

    def uncertain(self, kind: str) -> None:
        """Objects of the kind may have vanished unheard: list it as soon as it has been quiet for a moment."""
        if kind in self._pending:  # this round's list is not put off by what kopf finds at its start
            self._again.add(kind)
        else:
            self._list_at(kind, self._clock() + QUIET_S)

    async def await_kinds(self) -> None:
        """Return when the API server serves every kind: kopf looks for them only when it starts."""
        for one in self._follow.values():
            await self._insist(one, self._probe)

    async def run(self) -> None:
        """List for ever: everything at first and each interval, and in between what is uncertain."""
        async with asyncio.TaskGroup() as group:
            for one in self._follow.values():
                group.create_task(self._keep(one), name=f"resync {one.api.kind}")
            group.create_task(self._rounds(), name="resync rounds")

    def _list_at(self, kind: str, due: float) -> None:
        if kind not in self._due:  # else it wakes by itself, and sees that it is later now
            self._wake[kind].set()
        self._due[kind] = due

    async def _rounds(self) -> None:
        while True:
            self._pending = set(self._follow)
            self._round_ended.clear()
            for kind in self._follow:
                self._list_at(kind, self._clock())
            await self._round_ended.wait()
            self.is_synced = True
            log_event(_log, logging.INFO, "resync.ended", objects=sum(self._store.counts().values()))
            self._on_synced()
            await asyncio.sleep(self._interval_s)

    async def _keep(self, one: Followed) -> None:
        kind = one.api.kind
        while True:
            await self._until_due(kind)
            async with self._slots:
                del self._due[kind]
                await self._insist(one, self._list)
            self._pending.discard(kind)
            if kind in self._again:
                self._again.discard(kind)
                self.uncertain(kind)
            if not self._pending:
                self._round_ended.set()

    async def _until_due(self, kind: str) -> None:
        while (due := self._due.get(kind)) is None or due > self._clock():
            self._wake[kind].clear()
            try:
                async with asyncio.timeout(None if due is None else due - self._clock()):
                    await self._wake[kind].wait()
            except TimeoutError:
                continue

    async def _insist(self, one: Followed, act: Callable[[Followed], Awaitable[None]]) -> None:
        """Do it until it is done, later each time."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                await act(one)
            except ClusterError as error:
                self._note(one, error)
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0.0))
                wait_s = min(LONGEST_RETRY_S, 2 * wait_s)
            else:
                self._missing.discard(one.api.kind)
                return

    def _note(self, one: Followed, error: ClusterError) -> None:
        kind = one.api.kind
        if isinstance(error, NotFound):
            self._missing.add(kind)
            log_event(_log, logging.WARNING, "resync.kind_missing", kind=kind, message="install the CRDs; waiting")
        elif not isinstance(error, Gone):
            log_event(_log, logging.WARNING, "resync.list_failed", kind=kind, message=error.message)

    async def _probe(self, one: Followed) -> None:
        for namespace in one.namespaces or ("",):
            async for _ in self._cluster.pages(one.api.kind, namespace=namespace, labels=one.labels, page_objects=1):
                break

    async def _list(self, one: Followed) -> None:
        kind = one.api.kind
        for namespace in one.namespaces or ("",):
            entries: list[Entry] = []
            version = 0
            async for page in self._cluster.pages(kind, namespace=namespace, labels=one.labels):
                entries += filter(None, (readable_entry(kind, raw) for raw in page.items()))
                version = page.resource_version
            self._store.replace(kind, entries, version, namespace=namespace)
