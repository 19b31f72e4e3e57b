"""One request's life, from top to bottom: who, what, which model, how long, may it, where, the exchange, the bill.

Both edges (`http`, `grpc`) call `Flow.run`; they know their protocol and nothing of this. Every request that was
admitted is settled exactly once, whatever ends it: its answer, its client, its worker, or this process.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, TypeVarTuple, Unpack, cast

from hanmaru_contracts import keys
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.log import log_event
from hanmaru_contracts.names import ModelId, RequestId

from hanmaru_gateway.admission.bounds import Bounds
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.admission.identity import Directory
from hanmaru_gateway.admission.quota import Quota, matching_limits, most_output_tokens, places_of, tightest_context
from hanmaru_gateway.admission.tenants import TenantStore
from hanmaru_gateway.admission.vocabulary import check_against_model
from hanmaru_gateway.dispatch.dispatcher import RETRY_AFTER_S, Dispatcher, Job, no_worker
from hanmaru_gateway.dispatch.payload import engine_payload
from hanmaru_gateway.life import Life
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.rendering.renderer import Renderer
from hanmaru_gateway.request import (
    Answer,
    Call,
    Complete,
    Identity,
    Kind,
    ParsedRequest,
    RateState,
    Reservation,
    Stream,
)
from hanmaru_gateway.routing.registry import Registry, StoreState
from hanmaru_gateway.routing.routes import pick_model, shares
from hanmaru_gateway.routing.snapshot import RequestFacts, ServedModel
from hanmaru_gateway.settlement import Settlements
from hanmaru_gateway.tracing import Stage, Tracing

log = logging.getLogger(__name__)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

UNASKED_SHARE = 4
_DRAW_DIGITS = 15
"""Of a request's id, which is random: they choose among the models of a shared route, the same way however often."""
LONG_BODY_BYTES = 16 * 1024
"""Above it parsing, rendering and tokenising take more than a few milliseconds, and leave the event loop."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as a caller sees it."""

    route: str
    context_tokens: int


class Flow:
    """Everything a request meets. One a process."""

    def __init__(
        self,
        *,
        tenants: TenantStore,
        quota: Quota,
        settlements: Settlements,
        registry: Registry,
        renderer: Callable[[str], Renderer | None],
        dispatcher: Dispatcher,
        tracing: Tracing,
        meters: Meters,
        executor: Executor,
        platform_secret: bytes,
        bounds: Bounds,
        unasked_tokens: int,
        now: Callable[[], float],
        wall_now: Callable[[], datetime],
    ) -> None:
        self._tenants = tenants
        self._quota = quota
        self._settlements = settlements
        self._registry = registry
        self._renderer = renderer
        self._dispatcher = dispatcher
        self._tracing = tracing
        self._meters = meters
        self._executor = executor
        self._secret = platform_secret
        self._bounds = bounds
        self._unasked_tokens = unasked_tokens
        self._now = now
        self._wall_now = wall_now
        self._salts: dict[str, str] = {}

    def identify(self, authorization: str | None) -> Identity:
        """Who calls; for an edge that wants to know before it reads a body. Raises HanmaruError."""
        return self._directory().identify(authorization, self._wall_now())

    def models(self, authorization: str | None) -> list[ModelInfo]:
        """The models the caller may use and that have a worker, by route. Raises HanmaruError."""
        identity = self.identify(authorization)
        fleet = self._registry.fleet
        by_route: dict[str, list[ModelId]] = {}
        for model in sorted(fleet.models.values(), key=lambda model: (model.route, model.id)):
            if identity.may_call(model.id):
                by_route.setdefault(model.route, []).append(model.id)
        return [
            # A request may go to any of them.
            ModelInfo(route, min(_context(identity, model).tokens for model, _ in sharing))
            for route, models in by_route.items()
            if (sharing := shares(fleet, route, models))
        ]

    async def run(self, call: Call) -> Answer:
        """Serve one request. Raises HanmaruError, and nothing else but cancellation.

        Cancelling it, or closing the stream it returns, stops the engine's work and settles what was used.
        """
        request_id = RequestId(f"req-{secrets.token_hex(16)}")
        trace = self._tracing.request(call.kind, request_id, call.traceparent)
        life = Life(self._meters, self._settlements, trace, self._now)
        try:
            return await self._run(call, request_id, life)
        except (HanmaruError, asyncio.CancelledError) as error:
            life.end(error)
            raise
        except Exception as error:
            life.end(error)
            # No text of the exception: it may quote the request.
            log_event(log, logging.ERROR, "request.failed", request=request_id, error=_where(error))
            raise HanmaruError(ErrorCode.INTERNAL, f"the gateway failed; its log knows more of {request_id}") from error

    async def _run(self, call: Call, request_id: RequestId, life: Life) -> Answer:
        trace = life.trace
        with trace.stage(Stage.AUTH):
            directory = self._directory()
            identity = directory.identify(call.authorization, self._wall_now())
        trace.identified(identity.tenant)
        request = await self._parse(call)
        model = self._find_model(identity, request.route, request_id)
        life.model = model.id
        trace.asked(request)
        with trace.stage(Stage.TOKENISE):
            renderer = self._renderer_of(model)
            token_ids = await self._tokenise(renderer, request, len(call.body))
        output_tokens = fit_output(
            request,
            prompt_tokens=len(token_ids),
            context=_context(identity, model),
            unasked_tokens=self._unasked(identity, model),
        )
        check_against_model(request, vocabulary_tokens=renderer.vocabulary_tokens, output_tokens=output_tokens)
        limits = matching_limits(identity, model.id)
        with trace.stage(Stage.ADMISSION):
            reservation = await self._admit(
                life,
                identity,
                Reservation(
                    tenant=identity.tenant,
                    model=model.id,
                    request=request_id,
                    prompt_tokens=len(token_ids),
                    output_tokens=output_tokens * request.n,
                    limits=tuple(limit.name for limit in limits),
                    rate=RateState(),
                    places=places_of(limits),
                ),
            )
        job = Job(
            request=request,
            model=model,
            facts=RequestFacts(total_tokens=len(token_ids) + output_tokens),
            payload=engine_payload(
                request,
                served_name=model.route,
                token_ids=token_ids,
                output_tokens=output_tokens,
                rid=request_id,
                cache_salt=self._cache_salt(identity),
            ),
            life=life,
            check_key=_KeyCheck(self._tenants, directory, call.authorization, self._wall_now),
        )
        if request.stream:
            return Stream(request_id, await self._dispatcher.stream(job), reservation.rate)
        return Complete(request_id, await self._dispatcher.answer(job), reservation.rate)

    def _directory(self) -> Directory:
        if not self._tenants.loaded.is_set():
            raise _store_away()
        return self._tenants.directory

    async def _parse(self, call: Call) -> ParsedRequest:
        if len(call.body) <= LONG_BODY_BYTES:
            return parse_request(call.kind, call.body, self._bounds)
        return await self._apart(parse_request, call.kind, call.body, self._bounds)

    def _find_model(self, identity: Identity, route: str, request: RequestId) -> ServedModel:
        """The served model behind the route. A forbidden one and an unknown one look the same."""
        fleet = self._registry.fleet
        allowed = [model for model in fleet.routes.get(route, ()) if identity.may_call(model)]
        if self._registry.state is not StoreState.FRESH:
            raise _store_away()
        model = pick_model(fleet, route, allowed, int(request[-_DRAW_DIGITS:], 16)) if allowed else None
        if model is not None:
            return model
        # Where nobody owns routes, a model whose worker never came is known by the tenant's spec alone.
        if allowed or (fleet.weights is None and any(route in (ref.name, ref.id) for ref in identity.spec.models)):
            raise no_worker(route)
        raise HanmaruError(
            ErrorCode.MODEL_NOT_FOUND,
            f"the model `{route}` does not exist or is not yours to use; /v1/models lists those that are",
            param="model",
        )

    def _renderer_of(self, model: ServedModel) -> Renderer:
        renderer = self._renderer(model.artifact)
        if renderer is None:
            raise no_worker(model.route)
        return renderer

    async def _tokenise(self, renderer: Renderer, request: ParsedRequest, body_bytes: int) -> list[int]:
        if body_bytes <= LONG_BODY_BYTES:
            return token_ids_of(renderer, request)
        return await self._apart(token_ids_of, renderer, request)

    async def _apart(self, work: Callable[[Unpack[Ts]], R], *given: *Ts) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *given)

    async def _admit(self, life: Life, identity: Identity, wanted: Reservation) -> Reservation:
        """Reserve the worst case. What was charged unseen, because Redis or the caller left, is settled as well."""
        life.admitted(wanted)
        try:
            reservation = await self._quota.reserve(
                identity,
                wanted.model,
                wanted.request,
                prompt_tokens=wanted.prompt_tokens,
                output_tokens=wanted.output_tokens,
            )
        except HanmaruError as error:
            if error.code is not ErrorCode.STORE_UNAVAILABLE:
                life.refused()
            raise
        life.admitted(reservation)
        _require_caller()
        return reservation

    def _unasked(self, identity: Identity, model: ServedModel) -> int:
        """Output of a request that names no limit: so much of its tenant's bucket that others fit beside it."""
        most = most_output_tokens(identity, model.id)
        return self._unasked_tokens if most is None else min(self._unasked_tokens, most // UNASKED_SHARE)

    def _cache_salt(self, identity: Identity) -> str:
        domain = identity.spec.isolation_domain(identity.tenant)
        salt = self._salts.get(domain)
        if salt is None:
            salt = self._salts[domain] = keys.cache_salt(self._secret, domain)
        return salt


class _KeyCheck:
    """Whether a running stream's key still stands: one comparison while no tenant changes."""

    __slots__ = ("_authorization", "_directory", "_tenants", "_wall_now")

    def __init__(
        self, tenants: TenantStore, directory: Directory, authorization: str | None, wall_now: Callable[[], datetime]
    ) -> None:
        self._tenants = tenants
        self._directory = directory
        self._authorization = authorization
        self._wall_now = wall_now

    def __call__(self) -> None:
        directory = self._tenants.directory
        if directory is not self._directory:
            directory.identify(self._authorization, self._wall_now())
            self._directory = directory


def token_ids_of(renderer: Renderer, request: ParsedRequest) -> list[int]:
    """The request's prompt as token ids. Raises HanmaruError (INVALID_REQUEST)."""
    fields = request.fields
    if request.kind is Kind.CHAT:
        return renderer.chat(
            cast("list[dict[str, object]]", fields["messages"]),
            tools=offered_tools(fields.get("tools"), fields.get("tool_choice")),
            template_kwargs=cast("dict[str, object]", fields.get("chat_template_kwargs") or {})
            | ({"reasoning_effort": fields["reasoning_effort"]} if fields.get("reasoning_effort") else {}),
        )
    prompt = fields["prompt"]
    if isinstance(prompt, str):
        return renderer.prompt(prompt)
    ids = cast("list[int]", prompt)
    renderer.check_ids(ids)
    return ids


def offered_tools(tools: object, choice: object) -> list[object] | None:
    """The tools the model is shown: all of them, the one that must be called, or none."""
    if not isinstance(tools, list) or choice == "none":
        return None
    if isinstance(choice, dict):
        return [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
    return tools


@dataclass(frozen=True, slots=True)
class Context:
    """How long a request may be, and what says so."""

    tokens: int
    limit: str | None = None
    """The tenant's limit that says so. None: the model's own context."""


def fit_output(request: ParsedRequest, *, prompt_tokens: int, context: Context, unasked_tokens: int) -> int:
    """The most tokens each of the request's answers may have; at least 1.

    What was asked for must fit in the context behind the prompt; what was not asked for is made to fit, and to
    `unasked_tokens`. Raises HanmaruError (CONTEXT_LENGTH_EXCEEDED) with both numbers.
    """
    room = context.tokens - prompt_tokens
    asked = request.max_output_tokens
    if room < (asked or 1):
        wanted = f" and {asked} of output" if asked is not None else ""
        bound = f"limit `{context.limit}` allows a context of" if context.limit else "this model's context is"
        raise HanmaruError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"{bound} {context.tokens} tokens, but the prompt has {prompt_tokens} tokens{wanted}; "
            "shorten the prompt or ask for less output",
            param="messages" if request.kind is Kind.CHAT else "prompt",
        )
    return asked if asked is not None else max(1, min(room, unasked_tokens // request.n))


def _context(identity: Identity, model: ServedModel) -> Context:
    """The smaller of the model's context and what the tenant's limits allow of it."""
    limit = tightest_context(identity, model.id)
    if limit is None or limit.context_tokens is None or limit.context_tokens >= model.context_tokens:
        return Context(model.context_tokens)
    return Context(limit.context_tokens, limit.name)


def _require_caller() -> None:
    """Go on only when the caller is still there: before Python 3.12 redis-py can swallow a cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _store_away() -> HanmaruError:
    return HanmaruError(
        ErrorCode.STORE_UNAVAILABLE, "the gateway's store does not answer; try again", retry_after_s=RETRY_AFTER_S
    )


def _where(error: BaseException) -> str:
    """Type and place of an exception, without its text."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"{type(error).__name__}{at}"
