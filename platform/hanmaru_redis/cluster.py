"""A Redis Cluster behind the interface of one Redis: what goes to several nodes is sent to them together.

`opening` makes it. Commands, pipelines, transactions and WATCH of one slot behave as on one server, so that the
programs need not know. redis-py has a cluster client of its own; why it is not used stands in decision 0014.

A redirection is followed within the call. A call whose connection broke is made once more only where the slot has a new
primary by then; everything else is the caller's next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hanmaru_redis.address import Host
from hanmaru_redis.slots import Node, Slots, StillMoving, slot_of

_T = TypeVar("_T")
_Command = tuple[tuple[Any, ...], Mapping[str, Any]]

_PAUSES_S = (0.0, 0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.16, 0.16)
"""Before following one redirection after the other. A slot moves key by key, and what touches several of its keys must
wait until all have moved."""
_LOST = (RedisConnectionError, RedisTimeoutError, ClusterDownError, ReadOnlyError, OSError, TimeoutError)
"""How a node fails that is gone, hangs or was deposed."""


class ClusterRedis(Redis):
    """Behaves as a client of one server; keys decide which node it is."""

    def __init__(self, seeds: Iterable[Host], connect: Callable[[Host], Redis], ask_timeout_s: float) -> None:
        """`connect` makes the client of one node."""
        seeds = tuple(seeds)
        self._slots = Slots(seeds, connect, ask_timeout_s)
        super().__init__(connection_pool=self._slots.node(seeds[0]).redis.connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command, on the node that serves its key."""
        return await _routed(
            self._slots,
            slot_of(args),
            lambda node: node.redis.execute_command(*args, **options),
            lambda node: _asking(node, (args, options)),
        )

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> ClusterPipeline:
        """Commands that leave together; a transaction's keys, and watched ones, share a slot."""
        return ClusterPipeline(self._slots, self, transaction)

    def shard_of(self, key: str) -> Hashable:
        """What is the same for keys that one node serves, as far as is known."""
        return self._slots.serves_now(key)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        await self._slots.close()


class ClusterPipeline(Pipeline):
    """Belongs to one call, as every pipeline."""

    def __init__(self, slots: Slots, redis: ClusterRedis, transaction: bool) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, None)
        self._slots = slots
        self._redis = redis
        self._watched: Node | None = None

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """WATCH, and what is read before MULTI: all on the connection of the first key's node."""
        if self._watched is None:
            self._watched = await self._slots.serving(slot_of(args))
            self.connection_pool = self._watched.redis.connection_pool
        async with self._as_watcher(self._watched):
            return await super().immediate_execute_command(*args, **options)

    async def reset(self) -> None:  # type: ignore[override] # as in the library's own pipeline
        """Give the connection back and forget what was watched and queued."""
        await super().reset()
        self._watched = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers in the order of the commands."""
        if self._watched is not None:
            async with self._as_watcher(self._watched):
                return await super().execute(raise_on_error)
        stack, self.command_stack = list(self.command_stack), []
        if not stack:
            return []
        if self.is_transaction:
            return await self._execute_one_slot(stack, raise_on_error)
        return await self._execute_by_node(stack, raise_on_error)

    @asynccontextmanager
    async def _as_watcher(self, node: Node) -> AsyncIterator[None]:
        """A slot that moves is a change of what was watched: the caller begins anew, and finds the right node."""
        try:
            async with _doubting(self._slots, node):
                yield
        except (AskError, TryAgainError) as error:
            self._learn(node, error)
            raise WatchError("the slot has moved to another node, or is about to") from None

    async def _execute_one_slot(self, stack: list[_Command], raise_on_error: bool) -> list[Any]:
        async def send(node: Node) -> list[Any]:
            return await _sent(node, stack, transaction=True, raise_on_error=raise_on_error)

        slots = [slot for args, _ in stack if (slot := slot_of(args)) is not None]
        return await _routed(self._slots, slots[0] if slots else None, send, None)

    async def _execute_by_node(self, stack: list[_Command], raise_on_error: bool) -> list[Any]:
        """One exchange a node, all at once. What a node redirects is asked for again by itself, in order."""
        slots = [slot_of(args) for args, _ in stack]
        first = next((slot for slot in slots if slot is not None), None)
        nodes = [await self._slots.serving(first if slot is None else slot) for slot in slots]
        answers: list[Any] = [None] * len(stack)
        shares: dict[Host, list[int]] = {}
        for index, node in enumerate(nodes):
            shares.setdefault(node.host, []).append(index)

        async def send(share: list[int]) -> None:
            node = nodes[share[0]]
            commands = [stack[index] for index in share]
            try:
                async with _doubting(self._slots, node):
                    found = await _sent(node, commands, transaction=False, raise_on_error=False)
            except (RedisError, OSError) as error:
                found = [error] * len(share)
            for index, answer in zip(share, found, strict=True):
                answers[index] = answer

        await _together([send(share) for share in shares.values()])
        for index, (args, options) in enumerate(stack):
            if isinstance(answers[index], AskError | TryAgainError):
                self._learn(nodes[index], answers[index])
                answers[index] = await _answer_of(self._redis.execute_command(*args, **options))
        await self._ask_successors(stack, nodes, answers)
        for answer in answers:
            if raise_on_error and isinstance(answer, Exception):
                raise answer
        return answers

    async def _ask_successors(self, stack: list[_Command], nodes: list[Node], answers: list[Any]) -> None:
        """Once more what broke with its connection, where the slot has another node by now."""
        for index, (args, options) in enumerate(stack):
            slot = slot_of(args)
            if slot is None or not isinstance(answers[index], RedisConnectionError):
                continue
            node = await _answer_of(self._slots.serving(slot))
            if isinstance(node, Node) and node is not nodes[index]:
                answers[index] = await _answer_of(self._redis.execute_command(*args, **options))

    def _learn(self, node: Node, redirection: Exception) -> None:
        if isinstance(redirection, MovedError):
            self._slots.moved(node, redirection)


async def _routed(
    slots: Slots,
    slot: int | None,
    send: Callable[[Node], Awaitable[_T]],
    send_asking: Callable[[Node], Awaitable[_T]] | None,
) -> _T:
    """`send` to the slot's node, wherever that is. Without `send_asking` a key on its way is waited for."""
    node, is_asking, has_broken = await slots.serving(slot), False, False
    for pause_s in (*_PAUSES_S, None):
        try:
            async with _doubting(slots, node):
                return await (send_asking(node) if is_asking and send_asking else send(node))
        except MovedError as error:
            slots.moved(node, error)
            node, is_asking = slots.target(node, error), False
        except AskError as error:
            if send_asking is not None:
                node, is_asking = slots.target(node, error), True
        except TryAgainError:
            node, is_asking = await slots.serving(slot), False
        except RedisConnectionError:
            successor = await slots.serving(slot) if slot is not None and not has_broken else node
            if successor is node or pause_s is None:
                raise
            node, is_asking, has_broken = successor, False, True
        if pause_s:
            await asyncio.sleep(pause_s)
            node = slots.node(node.host)  # one that left may have been forgotten meanwhile
    raise StillMoving("the slot is still moving")


@asynccontextmanager
async def _doubting(slots: Slots, node: Node) -> AsyncIterator[None]:
    """Doubt the node when it fails as one does that is lost or deposed; giving up on its answer counts too."""
    try:
        yield
    except (*_LOST, asyncio.CancelledError):
        slots.doubt(node)
        raise


async def _sent(node: Node, stack: list[_Command], *, transaction: bool, raise_on_error: bool) -> list[Any]:
    async with node.redis.pipeline(transaction=transaction) as pipe:
        pipe.command_stack = list(stack)
        answers: list[Any] = await pipe.execute(raise_on_error=raise_on_error)
        return answers


async def _asking(node: Node, command: _Command) -> Any:
    """On the node that a slot moves to: ASKING and the command on one connection."""
    _, answer = await _sent(node, [(("ASKING",), {}), command], transaction=False, raise_on_error=False)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def _answer_of(call: Awaitable[Any]) -> Any:
    """Its answer, or the error that it ended with."""
    try:
        return await call
    except RedisError as error:
        return error


async def _together(calls: Sequence[Awaitable[None]]) -> None:
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)


def shard_of(redis: Redis, key: str) -> Hashable:
    """What is the same for keys that fail together: of a cluster the node, else None."""
    return redis.shard_of(key) if isinstance(redis, ClusterRedis) else None
