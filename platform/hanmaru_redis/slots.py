"""Which node of a Redis Cluster serves which key, and a client for each node.

`cluster` asks `serving` before every exchange and says what it met: a redirection is learned at once, and after a node
that did not answer the others are asked for the map anew. Leaves out what is sent, and when it is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence

from hanmaru_contracts.log import log_event
from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from hanmaru_redis.address import Host

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 3
"""Nodes asked for the map; the first answer counts. A stale one is put right by redirections."""
_ASK_AGAIN_S = 0.1
"""After an attempt: while a cluster elects, every request that fails would ask anew."""

_KEYLESS = frozenset({"PING", "TIME", "SCRIPT LOAD", "UNWATCH"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})


def slot_of(command: Sequence[object]) -> int | None:
    """The slot of a command's first key, None for a command without. That all its keys share one is Redis's to check.

    It knows the commands that the programs send, whose keys begin right after the name; scripts name theirs later.
    """
    name = str(command[0])
    if name in _KEYLESS:
        return None
    if name in _SCRIPTS:
        return _slot(command[3]) if int(str(command[2])) else None
    return _slot(command[1])


def _slot(key: object) -> int:
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


class NotACluster(RedisError):  # noqa: N818 - as in `errors`
    """The server that was named runs without a cluster."""


class StillMoving(RedisConnectionError):  # noqa: N818
    """A slot was redirected from node to node for longer than a call can wait."""


class Node:
    """One server of the cluster."""

    def __init__(self, host: Host, redis: Redis) -> None:
        self.host = host
        self.redis = redis


class Slots:
    """What this process knows of the cluster. Belongs to one event loop."""

    def __init__(self, seeds: Iterable[Host], connect: Callable[[Host], Redis], ask_timeout_s: float) -> None:
        """`connect` makes the client of one node, `ask_timeout_s` bounds one reading of the map."""
        self._seeds = tuple(seeds)
        self._connect = connect
        self._ask_timeout_s = ask_timeout_s
        self._nodes: dict[Host, Node] = {}
        self._serving: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._known: tuple[Host, ...] = ()
        """Nodes of the last map, replicas included."""
        self._primaries: frozenset[Host] = frozenset()
        self._is_current = False
        self._failed: Host | None = None
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def serving(self, slot: int | None) -> Node:
        """The node to ask about a slot; any node that serves, for None. Raises ConnectionError of redis."""
        if not self._is_current:
            await self._read()
        node = self._serving[random.randrange(REDIS_CLUSTER_HASH_SLOTS) if slot is None else slot]  # noqa: S311
        if node is None:
            self._is_current = False
            raise RedisConnectionError("no node of the Redis Cluster is known to serve this slot")
        return node

    def serves_now(self, key: str) -> Host | None:
        """Where the key is, as far as is known."""
        node = self._serving[_slot(key)]
        return node.host if node else None

    def node(self, host: Host) -> Node:
        """The node at that place."""
        if host not in self._nodes:
            self._nodes[host] = Node(host, self._connect(host))
        return self._nodes[host]

    def target(self, asked: Node, redirection: AskError) -> Node:
        """Where a redirection points; a cluster that does not know its nodes' names means the host that was asked."""
        return self.node(Host(redirection.host or asked.host.name, redirection.port))

    def moved(self, asked: Node, redirection: AskError) -> None:
        """The slot is served elsewhere from now on."""
        self._serving[redirection.slot_id] = self.target(asked, redirection)
        # Seldom one slot alone: the rest of the map is read again with the next exchange.
        self._is_current = False

    def doubt(self, node: Node) -> None:
        """It did not answer, or does not serve: whoever asks next looks whether another took its place."""
        self._is_current = False
        self._failed = node.host

    async def close(self) -> None:
        """Give all connections back."""
        nodes, self._nodes = list(self._nodes.values()), {}
        self._serving = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._is_current = False
        for node in nodes:
            await node.redis.aclose()

    async def _read(self) -> None:
        async with self._lock:
            if self._is_current or time.monotonic() - self._asked_at < _ASK_AGAIN_S:
                return
            try:
                async with asyncio.timeout(self._ask_timeout_s):
                    asked, answer = await self._ask_some()
                self._learn(asked, answer)
            except TimeoutError as error:
                raise RedisConnectionError("no node of the Redis Cluster answers") from error
            finally:
                self._asked_at = time.monotonic()
        await self._drop_idle()

    async def _ask_some(self) -> tuple[Node, list[list[object]]]:
        """The first answer of a few nodes: known ones by chance, and always a seed, since pods change addresses."""
        known = [host for host in self._known if host != self._failed]
        chosen = dict.fromkeys(
            random.sample(known, min(len(known), ASKED_AT_ONCE - 1)) + random.sample(self._seeds, len(self._seeds))
        )
        asked = [asyncio.create_task(self._ask(self.node(host))) for host in list(chosen)[:ASKED_AT_ONCE]]
        error: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except RedisError as failed:
                    error = failed
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(error, ResponseError) and "cluster support disabled" in str(error):
            raise NotACluster("the server is no node of a Redis Cluster") from error
        if isinstance(error, ResponseError):
            raise error
        raise RedisConnectionError("no node of the Redis Cluster answers") from error

    async def _ask(self, node: Node) -> tuple[Node, list[list[object]]]:
        try:
            return node, await node.redis.execute_command("CLUSTER", "SLOTS")
        except OSError as error:
            raise RedisConnectionError(str(error)) from error

    def _learn(self, asked: Node, ranges: list[list[object]]) -> None:
        """`ranges`: first slot, last slot, the primary, its replicas; a server is a list of host, port and more."""
        serving: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known: dict[Host, None] = {}
        primaries = set()
        for first, last, *servers in ranges:
            hosts = [_host(server, asked.host) for server in servers]
            known |= dict.fromkeys(hosts)
            primaries.add(hosts[0])
            assert isinstance(first, int)
            assert isinstance(last, int)
            serving[first : last + 1] = [self.node(hosts[0])] * (last + 1 - first)
        if frozenset(primaries) != self._primaries:
            event = "redis.cluster_changed" if self._primaries else "redis.cluster_found"
            log_event(
                log, logging.INFO, event, primaries=", ".join(sorted(map(str, primaries))), covered=None not in serving
            )
        self._serving, self._known, self._primaries = serving, tuple(known), frozenset(primaries)
        self._is_current, self._failed = True, None

    async def _drop_idle(self) -> None:
        """Close the idle connections of nodes that left, and forget those of which no other is left."""
        for host, node in list(self._nodes.items()):
            if host in self._known + self._seeds:
                continue
            pool = node.redis.connection_pool
            with contextlib.suppress(RedisError, OSError):
                await pool.disconnect(inuse_connections=False)
            _, (num_used, _) = pool.get_connection_count()
            if not num_used:
                self._nodes.pop(host, None)


def _host(server: object, asked: Host) -> Host:
    assert isinstance(server, list)
    name, port, *_ = server
    text = name.decode() if isinstance(name, bytes) else ""
    return Host(text if text not in ("", "?") else asked.name, int(port))
