"""What is owed and observed of one request: reservation settled, outcome counted, trace ended, each once.

Made by `flow` when a request arrives, carried through dispatch, and ended by whoever holds the answer's last byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId

from hanmaru_gateway.dispatch.sse import EngineUsage
from hanmaru_gateway.meters import Meters
from hanmaru_gateway.request import Reservation
from hanmaru_gateway.settlement import Settlements
from hanmaru_gateway.tracing import RequestTrace


class Life:
    """One request's. Nothing here awaits, so that it is safe while the request is being torn down."""

    __slots__ = ("_begun_s", "_has_ended", "_meters", "_now", "_reservation", "_settlements", "model", "trace")

    def __init__(self, meters: Meters, settlements: Settlements, trace: RequestTrace, now: Callable[[], float]) -> None:
        self._meters = meters
        self._settlements = settlements
        self._now = now
        self._begun_s = now()
        self._has_ended = False
        self._reservation: Reservation | None = None
        self.trace = trace
        self.model: ModelId | None = None
        """Known once the caller has named one it may use."""

    def admitted(self, reservation: Reservation) -> None:
        """From now on something is owed."""
        self._reservation = reservation

    def refused(self) -> None:
        """Nothing was charged after all."""
        self._reservation = None

    def first_token(self) -> None:
        """A stream's first events have come."""
        if self.model is not None:
            self._meters.first_token(self.model, self._now() - self._begun_s)

    def settle(self, usage: EngineUsage) -> None:
        """The engine has said what was used."""
        self._settle(usage.prompt_tokens, usage.completion_tokens)

    def settle_counted(self, output_tokens: int) -> None:
        """The answer broke off after about so many tokens."""
        if self._reservation is not None:
            self._settle(self._reservation.prompt_tokens, min(output_tokens, self._reservation.output_tokens))

    def settle_worst_case(self) -> None:
        """The caller left an answer that nobody counted: the worst case stands, or leaving would be free."""
        if self._reservation is not None:
            self._settle(self._reservation.prompt_tokens, self._reservation.output_tokens)

    def end(self, error: BaseException | None = None) -> None:
        """The request is over; what was not settled was not served, and costs nothing. Idempotent."""
        if self._has_ended:
            return
        self._has_ended = True
        self._settle(0, 0)
        self._meters.request_ended(self.model or "", _outcome(error), self._now() - self._begun_s)
        self.trace.end(error)

    def _settle(self, prompt_tokens: int, output_tokens: int) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._settlements.add(reservation, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, HanmaruError):
        return error.code.value
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return ErrorCode.INTERNAL.value
