"""The values that travel through one request's life: what was called, who called, what was reserved, what is answered.

Made by the edges (`http`, `grpc`, `admission`), read by `flow`. Holds no behaviour.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum

from hanmaru_contracts.crd.v1alpha1.tenant import TenantSpec
from hanmaru_contracts.names import ModelId, RequestId, TenantId


class Kind(StrEnum):
    """Which of the engine's generating routes a request goes to; the value is its path."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Call:
    """A request as an edge received it: nothing in it is trusted or checked yet."""

    kind: Kind
    body: bytes
    """OpenAI JSON; the gRPC edge writes the same."""
    authorization: str | None
    """Value of the Authorization header, or of gRPC's metadata of that name."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request whose every field is on the allow-list and within bounds."""

    kind: Kind
    route: str
    """What the caller put in `model`."""
    stream: bool
    include_usage: bool
    """The caller asked for a usage chunk at the end of its stream."""
    max_output_tokens: int | None
    """As asked, for each of `n`; None: the rest of the context."""
    n: int
    fields: dict[str, object] = field(repr=False)
    """What may be forwarded to the engine, `model` and streaming fields left out."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The tenant behind a valid key, as its spec stood when the request was authenticated."""

    tenant: TenantId
    spec: TenantSpec
    credential: str
    """Name of the credential used, never the key."""

    def may_call(self, model: ModelId) -> bool:
        """Whether the tenant's spec names the model."""
        return any(ref.id == model for ref in self.spec.models)


@dataclass(frozen=True, slots=True)
class RateState:
    """What is left of the tightest limits after a reservation; None where nothing is limited."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """What an admitted request holds of its tenant's limits until it is settled, once."""

    tenant: TenantId
    model: ModelId
    request: RequestId
    prompt_tokens: int
    output_tokens: int
    """Worst case."""
    limits: tuple[str, ...]
    """Names of the limits that were charged."""
    rate: RateState
    places: tuple[str, ...] = ()
    """Names of the limits in which it takes a place among the requests that run."""


@dataclass(frozen=True, slots=True)
class Complete:
    """A whole answer."""

    request: RequestId
    body: bytes = field(repr=False)
    rate: RateState


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that comes in events. Its holder closes `events`, which aborts unfinished work on the engine."""

    request: RequestId
    events: AsyncGenerator[bytes, None] = field(repr=False)
    """Bytes of whole server-sent events, passed through from the engine; the last is `data: [DONE]`."""
    rate: RateState


Answer = Complete | Stream
