"""Hears of every change in the cluster: kopf as a watch engine, and nothing else of kopf.

`main` runs one `Watch` for the whole cluster and one for Secrets in tenants' namespaces, which are all the Secrets we
may read. Each event becomes an `Entry` and goes to the sink; there is no logic here.

kopf believes that the process is its own: it sets signal handlers, and when it ends it cancels every task of the loop.
So each kopf has a thread and a loop of its own. It ends at errors that a watch survives elsewhere (a 403 while the
API server starts, an ERROR event); then it is started again, later each time. It is kept from writing anything: only
`on.event`, no posting, no peering, storages that store nothing, and a finalizer of a name nobody uses, because it
removes its own from whatever object it sees. After an expired watch it lists again and never says what vanished
meanwhile; so each of its lists, an empty one above all, is a sign that the kind must be listed by us. Lists are seen
in its HTTP session, which is ours (kopf 1.45, `_cogs/clients/watching.py`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import kopf
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import LABEL_MANAGED_BY, MANAGED_BY
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from lightkube.config.kubeconfig import SingleConfig

from hanmaru_operator import kinds
from hanmaru_operator.cluster import PAGE_OBJECTS
from hanmaru_operator.connection import kopf_login
from hanmaru_operator.kinds import Api
from hanmaru_operator.observe import Entry, readable_entry

_log = logging.getLogger(__name__)

OURS_ONLY = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Label selector of what we make; others' StatefulSets and Services are not watched."""
FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 30.0
_STABLE_S = 60.0
"""A kopf that ran for so long failed by a new cause: the next restart is soon again."""
_STOP_TIMEOUT_S = 3.0
_WORKER_IDLE_S = 0.05
"""How long kopf's task for one object waits for another event, holding the last; its default of 5 s would hold every
node and pod of the cluster at once while it lists them. Zero would spin."""
_CHILDREN = (
    kinds.STATEFUL_SETS,
    kinds.CONTROLLER_REVISIONS,
    kinds.SERVICES,
    kinds.CONFIG_MAPS,
    kinds.SERVICE_ACCOUNTS,
    kinds.NETWORK_POLICIES,
    kinds.POD_DISRUPTION_BUDGETS,
)


@dataclass(frozen=True, slots=True)
class Followed:
    """A kind that is watched and listed."""

    api: Api
    labels: str = ""
    """Label selector; empty: all objects."""
    namespaces: tuple[str, ...] = ()
    """Empty: everywhere."""


CLUSTER_WIDE = (
    *(Followed(api) for api in (kinds.ACCELERATOR_POOLS, kinds.MODEL_DEPLOYMENTS, kinds.TENANTS)),
    *(Followed(api, OURS_ONLY) for api in _CHILDREN),
    *(Followed(api) for api in (kinds.PODS, kinds.NODES, kinds.NAMESPACES)),
)


def followed(tenant_namespaces: Sequence[str]) -> tuple[Followed, ...]:
    """Everything the operator knows of."""
    if not tenant_namespaces:
        return CLUSTER_WIDE
    return *CLUSTER_WIDE, Followed(kinds.SECRETS, namespaces=tuple(tenant_namespaces))


class Sink(Protocol):
    """Who is told; always in the loop that `Watch.run` runs in."""

    def seen(self, entry: Entry) -> None:
        """An object is there, or has changed."""

    def vanished(self, entry: Entry) -> None:
        """An object was deleted, or no longer matches the label selector; as it was last."""

    def uncertain(self, kind: str) -> None:
        """Objects of the kind may have vanished unheard: list it."""


class Watch:
    """One kopf and its thread."""

    def __init__(self, name: str, follow: Collection[Followed], connection: SingleConfig, sink: Sink) -> None:
        """All of `follow` are watched in the same namespaces."""
        self._name = name
        self._follow = tuple(follow)
        self._namespaces = sorted({namespace for one in follow for namespace in one.namespaces})
        self._connection = connection
        self._sink = sink

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_RESTART_S
        while True:
            begun_s = loop.time()
            error = await _Thread(self._name, self._serve).run()
            for one in self._follow:
                self._sink.uncertain(one.api.kind)
            wait_s = FIRST_RESTART_S if loop.time() - begun_s > _STABLE_S else wait_s
            log_event(_log, logging.WARNING, "watch.ended", watch=self._name, error=repr(error), again_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(LONGEST_RESTART_S, 2 * wait_s)

    async def _serve(self, stop: asyncio.Event, call: Callable[..., object]) -> None:
        """The life of one kopf, in its own loop; `call` calls a function in ours."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login(call))
        for one in self._follow:
            api = one.api
            on_event = kopf.on.event(group=api.group, version=api.version, plural=api.plural, registry=registry)
            on_event(_handler(api.kind, self._sink, call))
        await kopf.operator(
            registry=registry,
            settings=_settings(self._follow),
            memories=_Forgetful(),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            stop_flag=stop,
        )

    def _login(self, call: Callable[..., object]) -> Callable[..., Any]:
        kinds_by_path = {one.api.path(place): one.api.kind for one in self._follow for place in one.namespaces or ("",)}

        def listed(path: str) -> None:
            kind = kinds_by_path.get(path)
            if kind is not None:
                call(self._sink.uncertain, kind)

        async def login(**_: object) -> kopf.AiohttpSession:
            connection = kopf_login(self._connection)
            return kopf.AiohttpSession(server=connection.server, aiohttp_session=_session(connection, listed))

        return login


def _session(connection: kopf.ConnectionInfo, listed: Callable[[str], object]) -> aiohttp.ClientSession:
    """As kopf would make it; `listed` hears the path of each list that the API server has answered."""

    async def ended(_: aiohttp.ClientSession, __: object, request: aiohttp.TraceRequestEndParams) -> None:
        is_watch = "watch" in request.url.query
        if request.method == "GET" and not is_watch and request.response.status == HTTPStatus.OK:
            listed(request.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=connection.as_ssl_context()),
        headers=connection.as_http_headers(),
        trust_env=connection.trust_env,
        trace_configs=[trace],
    )


def _handler(kind: str, sink: Sink, call: Callable[..., object]) -> Callable[..., Any]:
    async def on_event(event: Any, **_: object) -> None:
        entry = readable_entry(kind, event["object"])
        if entry is None:
            return
        if event["type"] == "DELETED":
            call(sink.vanished, entry)
            return
        call(sink.seen, entry)

    return on_event


def _settings(follow: Collection[Followed]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None  # it would kill the process, not the thread
    settings.posting.enabled = False
    settings.scanning.disabled = True  # `resync` waits for our CRDs; so kopf needs no right to read CRDs
    settings.watching.chunk_size = PAGE_OBJECTS
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = (0.5, 1, 2, 3, 5)
    settings.queueing.idle_timeout = _WORKER_IDLE_S
    settings.persistence.finalizer = "serving.hanmaru.dev/nobody-uses-this"
    settings.persistence.diffbase_storage = _NoBase()
    settings.persistence.progress_storage = _NoProgress()
    for one in follow:
        if one.labels:
            settings.watching.label_selectors[_is(one.api)] = one.labels
    return settings


def _is(api: Api) -> Callable[[Any], bool]:
    return lambda resource: (resource.group, resource.plural) == (api.group, api.plural)


class _NoBase(kopf.DiffBaseStorage):
    """Compares nothing with anything: the default copies each object deeply at each event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Remembers nothing, on objects least of all."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class _Forgetful(ResourceMemories):
    """Keeps no record by object: kopf's would stay for ever where a deletion was missed, 3 KB each."""

    async def recall(self, raw_body: Any, **_: Any) -> ResourceMemory:
        return ResourceMemory()


class _Thread:
    """Runs a coroutine function in a thread with a loop of its own, and calls back into ours."""

    def __init__(self, name: str, serve: Callable[[asyncio.Event, Callable[..., object]], Any]) -> None:
        self._ours = asyncio.get_running_loop()
        self._serve = serve
        self._ended: asyncio.Future[BaseException | None] = self._ours.create_future()
        self._is_wanted = True
        self._stop: Callable[[], object] = lambda: None
        # A daemon: a kopf that does not end must not keep the process, which has perhaps lost the lease.
        self._thread = threading.Thread(target=self._run, name=f"watch-{name}", daemon=True)

    async def run(self) -> BaseException | None:
        """What it ended with. When cancelled, nothing is called back any more, and it is asked to end."""
        self._thread.start()
        try:
            return await asyncio.shield(self._ended)
        finally:
            self._is_wanted = False
            self._stop()
            await asyncio.wait([self._ended], timeout=_STOP_TIMEOUT_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._main())
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        self._in_our_loop(self._end, error)

    async def _main(self) -> None:
        theirs, stop = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: theirs.call_soon_threadsafe(stop.set) if theirs.is_running() else None
        if self._is_wanted:
            await self._serve(stop, self._call)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        self._in_our_loop(self._if_wanted, function, *arguments)

    def _if_wanted(self, function: Callable[..., None], *arguments: object) -> None:
        if self._is_wanted:
            function(*arguments)

    def _in_our_loop(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._ours.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # our loop is closed: the process ends
            return

    def _end(self, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)
