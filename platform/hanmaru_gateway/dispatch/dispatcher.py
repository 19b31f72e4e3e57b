"""Brings an admitted request to a worker: the best one, and once more to another when the first breaks too early.

"Too early" is before the first byte of the answer; afterwards a loss ends the answer with an error. Whatever happens,
the seat on the worker is released, a worker that broke its word is suspected, and the request's life is ended.
Called by `flow`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event

from hanmaru_gateway.dispatch.engine import EngineClient, EngineLostError, EngineRefusedError, Exchange
from hanmaru_gateway.dispatch.sse import EngineUsage, read_answer
from hanmaru_gateway.life import Life
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.request import ParsedRequest
from hanmaru_gateway.routing.policies import Policy
from hanmaru_gateway.routing.registry import Registry, Seat
from hanmaru_gateway.routing.snapshot import RequestFacts, ServedModel, WorkerSnapshot
from hanmaru_gateway.tracing import Dispatch, Stage, Usage

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
"""Workers register within a second of being ready, and a busy one has finished something by then."""
TRIES = 2


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted request, ready to be sent."""

    request: ParsedRequest
    model: ServedModel
    facts: RequestFacts
    payload: bytes = field(repr=False)
    life: Life
    check_key: Callable[[], None]
    """Raises HanmaruError (INVALID_API_KEY) once the caller's key was revoked; cheap enough for every event."""


class Dispatcher:
    """One a process."""

    def __init__(
        self,
        registry: Registry,
        engines: EngineClient,
        policy: Policy,
        meters: Meters,
        random: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._engines = engines
        self._policy = policy
        self._meters = meters
        self._random = random

    async def answer(self, job: Job) -> bytes:
        """The body of a whole answer; the job's life is settled, and ended when it succeeds."""
        tried: list[WorkerSnapshot] = []
        while True:
            worker, seat, dispatch = self._begin(job, tried)
            try:
                body = await self._engines.answer(
                    worker.record, seat, job.request.kind, job.payload, dispatch.traceparent
                )
                usage = _read(body, job.life)
            except EngineLostError as loss:
                self._lost(job, worker, loss, dispatch, tried)
            except EngineRefusedError:
                dispatch.end(ErrorCode.WORKER_REFUSED)
                raise _refused() from None
            except BaseException as error:
                job.life.settle_worst_case()
                dispatch.end(error)
                raise
            else:
                job.life.settle(usage)
                dispatch.end()
                job.life.end()
                return body
            finally:
                seat.release()

    async def stream(self, job: Job) -> Events:
        """Events of an answer that has begun. Their holder closes them, and with them the job's life."""
        tried: list[WorkerSnapshot] = []
        while True:
            worker, seat, dispatch = self._begin(job, tried)
            try:
                exchange, first = await self._engines.stream(
                    worker.record,
                    seat,
                    job.request.kind,
                    job.payload,
                    dispatch.traceparent,
                    show_usage=job.request.include_usage,
                )
            except EngineLostError as loss:
                seat.release()
                self._lost(job, worker, loss, dispatch, tried)
            except EngineRefusedError:
                seat.release()
                dispatch.end(ErrorCode.WORKER_REFUSED)
                raise _refused() from None
            except BaseException as error:
                seat.release()
                job.life.settle_counted(0)
                dispatch.end(error)
                raise
            else:
                dispatch.first_token()
                job.life.first_token()
                return Events(job, exchange, first, seat, dispatch, partial(self._suspect, job, worker))

    def _begin(self, job: Job, tried: list[WorkerSnapshot]) -> tuple[WorkerSnapshot, Seat, Dispatch]:
        with job.life.trace.stage(Stage.ROUTE):
            workers = self._policy(job.facts, self._registry.workers(job.model), self._random)
            fresh = [worker for worker in workers if all(worker.replica != t.replica for t in tried)]
            if not fresh:
                raise _worker_lost() if tried else no_worker(job.model.route)
        worker = fresh[0]
        dispatch = job.life.trace.dispatch(
            worker.replica, f"http://{worker.record.address}", streams=job.request.stream
        )
        return worker, self._registry.take(worker), dispatch

    def _lost(
        self, job: Job, worker: WorkerSnapshot, loss: EngineLostError, dispatch: Dispatch, tried: list[WorkerSnapshot]
    ) -> None:
        """Return when another try is due; raise what the caller is told when none is."""
        dispatch.end(ErrorCode.WORKER_LOST)
        if not loss.is_busy:
            self._suspect(job, worker, loss)
        tried.append(worker)
        if loss.reason == "stalled":  # its deadline was the request's whole patience
            raise _worker_lost()
        if len(tried) >= TRIES or not any(
            all(worker.replica != t.replica for t in tried) for worker in self._registry.workers(job.model)
        ):
            raise _busy() if loss.is_busy else _worker_lost()

    def _suspect(self, job: Job, worker: WorkerSnapshot, loss: EngineLostError) -> None:
        self._registry.suspect(worker)
        self._meters.worker_failed(job.model.id, loss.reason)
        log_event(
            log,
            logging.WARNING,
            "worker.suspected",
            model=job.model.id,
            replica=worker.replica,
            reason=loss.reason,
        )


class Events(AsyncGenerator[bytes, None]):
    """A running stream's events. Not a generator function: one that was never begun would never run its `finally`."""

    def __init__(
        self,
        job: Job,
        exchange: Exchange,
        first: bytes,
        seat: Seat,
        dispatch: Dispatch,
        suspect: Callable[[EngineLostError], None],
    ) -> None:
        self._job = job
        self._exchange = exchange
        self._first: bytes | None = first
        self._seat = seat
        self._dispatch = dispatch
        self._suspect = suspect
        self._has_ended = False

    async def asend(self, value: None) -> bytes:
        """The next block. A worker lost on the way makes it raise HanmaruError, once, instead of more blocks."""
        if self._has_ended:
            raise StopAsyncIteration
        try:
            if self._first is not None:
                block, self._first = self._first, None
            else:
                self._job.check_key()
                block = await self._exchange.next_block()
        except EngineLostError as loss:
            self._suspect(loss)
            lost = _worker_lost()
            self._end(lost)
            raise lost from None
        except BaseException as error:
            self._end(error)
            raise
        if not block:
            self._end(None)
            raise StopAsyncIteration
        return block

    async def athrow(  # type: ignore[override]  # only this one of the interface's two forms is ever used
        self, kind: type[BaseException], value: BaseException | None = None, traceback: TracebackType | None = None
    ) -> bytes:
        """End the stream with that exception."""
        error = value if value is not None else kind()
        self._end(error)
        raise error

    async def aclose(self) -> None:
        """End the stream; unfinished work is stopped on the engine."""
        self._end(GeneratorExit())

    def _end(self, error: BaseException | None) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._exchange.close()
        self._seat.release()
        reader, life = self._exchange.reader, self._job.life
        if reader.has_ended:
            # The caller has everything, or left at the very end: the engine's work is done either way.
            error = None
        if reader.usage is not None:
            life.settle(reader.usage)
            life.trace.answered(_usage(reader.usage), ())
        else:
            life.settle_counted(reader.events)
        self._dispatch.end(error)
        life.end(error)


def _read(body: bytes, life: Life) -> EngineUsage:
    answer = read_answer(body)
    if answer is None or answer.usage is None:
        raise EngineLostError("broken")
    life.trace.answered(_usage(answer.usage), [c.finish_reason for c in answer.choices if c.finish_reason])
    return answer.usage


def _usage(usage: EngineUsage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def no_worker(route: str) -> HanmaruError:
    """No capable worker is there."""
    return HanmaruError(
        ErrorCode.NO_WORKER, f"no worker serves `{route}` at the moment; try again", retry_after_s=RETRY_AFTER_S
    )


def _busy() -> HanmaruError:
    return HanmaruError(ErrorCode.NO_WORKER, "all workers are full; try again", retry_after_s=RETRY_AFTER_S)


def _worker_lost() -> HanmaruError:
    return HanmaruError(ErrorCode.WORKER_LOST, "the worker was lost before it had finished the answer")


def _refused() -> HanmaruError:
    # Not the engine's own words: they may hold its internals.
    return HanmaruError(
        ErrorCode.WORKER_REFUSED,
        "the engine refused the request; a schema, a tool definition or a combination of fields is not possible",
    )
