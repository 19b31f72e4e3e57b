"""What a leading operator consists of and how it lives: the wiring, and nothing that decides.

`main` makes one when the process starts and runs it when the lease is ours. The order of a term: wait for our kinds,
watch, list everything, and only then reconcile; a store that is half full would delete what it does not know.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from hanmaru_contracts import names
from hanmaru_contracts.errors import HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ModelId, ReplicaId, TenantId
from hanmaru_redis import Redis
from lightkube.config.kubeconfig import SingleConfig

from hanmaru_operator import kinds
from hanmaru_operator.announce import Announcer
from hanmaru_operator.apply import Applier
from hanmaru_operator.cluster import Cluster
from hanmaru_operator.directory import Directory
from hanmaru_operator.fleet import Fleet
from hanmaru_operator.meters import Meters
from hanmaru_operator.objects import Change, Store
from hanmaru_operator.observe import Entry
from hanmaru_operator.plan.routes import owners_of
from hanmaru_operator.plan.tenant import TenantSettings
from hanmaru_operator.queue import RECONCILE_TIMEOUT_S, WorkQueue
from hanmaru_operator.reconcile.children import Children, Trust
from hanmaru_operator.reconcile.deployments import DeploymentReconciler
from hanmaru_operator.reconcile.pools import PoolReconciler
from hanmaru_operator.reconcile.routes import Routes
from hanmaru_operator.reconcile.tenants import TenantsReconciler
from hanmaru_operator.reconcile.view import View
from hanmaru_operator.resync import Resync
from hanmaru_operator.settings import Settings
from hanmaru_operator.tracing import Tracing
from hanmaru_operator.triggers import DEPLOYMENT, POOL, TENANTS_KEY, Triggers
from hanmaru_operator.types import ObjectKey, PoolName
from hanmaru_operator.watch import Followed, Watch, followed

_log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
"""How long running reconciles may take to end after SIGTERM."""
_ROUTES_WAIT_S = 10.0
"""How long the first reconcile waits for Redis to tell who owned which route."""
_ROUTES_RETRY_S = 1.0
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels: no words
_SUFFIX_CHARS = 5


class Reconciler(Protocol):
    """Makes the cluster be as one object says."""

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Look at everything and act; seconds until the next look. Raises HanmaruError: it is tried again."""


class Leading:
    """A leading operator; run it once."""

    def __init__(
        self,
        settings: Settings,
        connection: SingleConfig,
        cluster: Cluster,
        redis: Redis,
        *,
        trust: Trust,
        meters: Meters,
        tracing: Tracing,
        instance: str,
    ) -> None:
        """`cluster` writes only while we hold the lease."""
        self._connection = connection
        self._tracing = tracing
        self._follow = followed(settings.tenant_namespaces)
        self._is_live = False
        self._synced = asyncio.Event()
        self._listed = asyncio.Event()
        self.store = Store(self._changed)
        self.queue = WorkQueue(self._reconcile, workers=settings.workers, clock=time.monotonic, meter=meters)
        self.resync = Resync(
            cluster,
            self.store,
            self._follow,
            clock=time.monotonic,
            on_synced=self._all_listed,
            interval_s=settings.resync_interval_s,
        )
        self._meters = meters
        meters.store_is(True)  # the directory tells when it is not
        self._triggers = Triggers(self.store)
        self._applier = Applier(cluster, self.store, time.monotonic)
        self._announcer = Announcer(cluster, instance=instance, clock=time.monotonic)
        self._directory = Directory(redis, on_reachability=self._redis_turned, now=time.monotonic)
        self._fleet = Fleet(redis, trust.platform_secret, now_ms=lambda: int(time.time() * 1000))
        self._routes = Routes()
        self._view = View(self.store)
        self._deployments = self._make_deployments(settings, trust)
        self._reconcilers: Mapping[str, Reconciler] = {
            DEPLOYMENT: self._deployments,
            POOL: PoolReconciler(
                store=self.store,
                view=self._view,
                applier=self._applier,
                now=time.time,
                room_changed=self._room_changed,
                record=self._announcer.record,
            ),
            TENANTS_KEY.kind: TenantsReconciler(
                store=self.store,
                routes=self._routes,
                applier=self._applier,
                directory=self._directory,
                settings=_tenant_settings(settings),
                record=self._announcer.record,
                now=time.time,
            ),
        }

    def _make_deployments(self, settings: Settings, trust: Trust) -> DeploymentReconciler:
        render = settings.render
        children = Children(store=self.store, view=self._view, applier=self._applier, settings=render, trust=trust)
        return DeploymentReconciler(
            store=self.store,
            view=self._view,
            routes=self._routes,
            applier=self._applier,
            children=children,
            fleet=self._fleet,
            settings=render,
            return_after_s=settings.return_after_s,
            record=self._announcer.record,
            now=time.time,
            new_suffix=lambda: "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_CHARS)),
        )

    @property
    def unready(self) -> str | None:
        """What is missing before it can do its work; None: nothing."""
        if self.resync.missing_kinds:
            return f"the API server does not serve {', '.join(self.resync.missing_kinds)}: install the CRDs"
        return None if self._is_live else "not everything has been listed yet"

    @property
    def stuck(self) -> str | None:
        """What shows that it will not go on by itself; None: nothing."""
        running_s = self.queue.longest_running_s
        return f"a reconcile runs for {running_s:.0f} s" if running_s > 2 * RECONCILE_TIMEOUT_S else None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; what runs then may end in peace."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._listen(), name="watch and list"),
                group.create_task(self._announcer.run(), name="announce"),
                group.create_task(self._directory.run(), name="directory"),
                group.create_task(self._sweep(), name="sweep"),
            ]
            work = group.create_task(self._work(), name="work")
            await stop.wait()
            self.queue.stop()
            await asyncio.wait([work], timeout=STOP_GRACE_S)
            for task in (*tasks, work):
                task.cancel()

    async def _listen(self) -> None:
        await self.resync.await_kinds()
        async with asyncio.TaskGroup() as group:
            for name, part in _watches(self._follow).items():
                group.create_task(Watch(name, part, self._connection, self).run(), name=f"watch {name}")
            group.create_task(self.resync.run(), name="resync")

    async def _work(self) -> None:
        await self._synced.wait()
        await self._learn_routes()
        await self.queue.run()

    async def _learn_routes(self) -> None:
        """Who owned which route; when Redis does not say in time, the oldest claims win until it does."""
        deadline_s = time.monotonic() + _ROUTES_WAIT_S
        while True:
            try:
                held = await self._directory.held_routes()
            except HanmaruError as error:
                if time.monotonic() > deadline_s:
                    log_event(_log, logging.WARNING, "leading.routes_unknown", message=error.message)
                    return
                await asyncio.sleep(_ROUTES_RETRY_S)
            else:
                self._routes.begin(owners_of(held))
                return

    # --- the watch tells (`watch.Sink`) ----------------------------------------------------------------------------

    def seen(self, entry: Entry) -> None:
        """An object is there, or has changed."""
        self.store.put(entry)

    def vanished(self, entry: Entry) -> None:
        """An object is gone."""
        self.store.remove(entry.key, entry.uid, entry.resource_version)

    def uncertain(self, kind: str) -> None:
        """Objects of the kind may have vanished unheard."""
        self.resync.uncertain(kind)

    # --- and what follows from it ----------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        self._view.changed(change)
        self._routes.changed(change)
        if change.new is None:
            self._applier.forget(change.key)
        # Before everything is known, who uses which pool is learnt, and nothing is asked for.
        if self._is_live or change.key.kind in (DEPLOYMENT, POOL):
            calls = self._triggers.calls(change)
            for call in calls if self._is_live else ():
                self.queue.add(call.key, is_direct=call.is_direct)

    def _all_listed(self) -> None:
        self._is_live = True
        self.queue.add(TENANTS_KEY)  # a key revoked while nobody led must not wait for a thousand deployments
        for kind in (POOL, DEPLOYMENT):
            for entry in self.store.of_kind(kind):
                self.queue.add(entry.key, is_direct=False)
        self._directory.resync()
        self._synced.set()
        self._listed.set()

    def _room_changed(self, pool: PoolName) -> None:
        for key in self._triggers.users_of(pool):
            if self._deployments.wants_room(key):
                self.queue.add(key)

    def _redis_turned(self, is_reachable: bool) -> None:
        self._meters.store_is(is_reachable)
        self.queue.add(TENANTS_KEY)

    async def _reconcile(self, key: ObjectKey) -> float | None:
        with self._tracing.reconcile(key):
            return await self._reconcilers[key.kind].reconcile(key)

    async def _sweep(self) -> None:
        """After each listing, take out of Redis what has no object any more."""
        me = asyncio.current_task()
        while me is not None and not me.cancelling():  # see `Directory.run`
            await self._listed.wait()
            self._listed.clear()
            await self._fleet.sweep(self._replicas())

    def _replicas(self) -> dict[ModelId, set[ReplicaId]]:
        """Of every deployment there is, draining ones included."""
        found: dict[ModelId, set[ReplicaId]] = {
            ModelId(f"{e.key.namespace}/{e.key.name}"): set() for e in self.store.of_kind(DEPLOYMENT)
        }
        for kind in (kinds.STATEFUL_SETS.kind, kinds.PODS.kind):
            for entry in self.store.of_kind(kind):
                deployment, replica = (
                    entry.labels.get(label) for label in (names.LABEL_DEPLOYMENT, names.LABEL_REPLICA)
                )
                if deployment and replica:
                    model = ModelId(f"{entry.key.namespace}/{deployment}")
                    found.setdefault(model, set()).add(ReplicaId(replica))
        return found


def _watches(follow: Collection[Followed]) -> dict[str, list[Followed]]:
    """One watch for the whole cluster, one for what is watched in some namespaces only."""
    parts: dict[str, list[Followed]] = {}
    for one in follow:
        parts.setdefault("tenants" if one.namespaces else "cluster", []).append(one)
    return parts


def _tenant_settings(settings: Settings) -> TenantSettings:
    return TenantSettings(
        namespaces=frozenset(settings.tenant_namespaces),
        shared_domains={
            name: None if tenants is None else frozenset(map(TenantId, tenants))
            for name, tenants in settings.shared_domains.items()
        },
        bands=frozenset(settings.bands),
    )
