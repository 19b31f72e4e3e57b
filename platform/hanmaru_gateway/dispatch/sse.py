"""Cuts an engine's event stream into whole events and finds the few that mean something to the gateway.

Content passes as bytes. An event is parsed only when it holds usage or an error, which shows in its bytes: inside a
JSON string every quote is escaped, so `"usage":{` never occurs in generated text. Pure; called by `engine`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

EVENT_MAX_BYTES = 8 * 1024 * 1024
"""One event with all logprobs of a step stays far below; beyond, the engine answers nonsense."""
_END = b"\n\n"
_DONE = b"data: [DONE]\n\n"
_USAGE = (b'"usage":{', b'"usage": {')
_ERROR = (b'data: {"error"', b'data: {"object":"error"')


class EngineUsage(msgspec.Struct, frozen=True):
    """Token counts as engines report them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int | None] | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that were in the prefix cache; None when the engine does not say."""
        return (self.prompt_tokens_details or {}).get("cached_tokens")


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class EngineAnswer(msgspec.Struct, frozen=True):
    """What is read of an answer or of a stream's usage event; all else passes through unread."""

    usage: EngineUsage | None = None
    choices: list[_Choice] = msgspec.field(default_factory=list)


_answers = msgspec.json.Decoder(EngineAnswer)


def read_answer(body: bytes) -> EngineAnswer | None:
    """The counts in a whole answer; None when it is none."""
    try:
        return _answers.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


class DamagedStreamError(ValueError):
    """The bytes are no event stream that an engine would send."""


@dataclass(slots=True)
class EventReader:
    """Feed it bytes, take blocks of whole events. One a stream."""

    show_usage: bool
    """Pass the usage event on."""
    usage: EngineUsage | None = None
    has_ended: bool = False
    """The final `[DONE]` has come."""
    has_failed: bool = False
    """The engine sent an error event, which is not passed on."""
    events: int = 0
    """Events passed on: about one a generated token, for want of a usage event."""
    _rest: bytes = field(default=b"", repr=False)

    def feed(self, data: bytes) -> bytes:
        """The next block of whole events to pass on, possibly empty. Raises DamagedStreamError."""
        data = self._rest + data if self._rest else data
        cut = data.rfind(_END) + len(_END)
        if cut < len(_END):
            if len(data) > EVENT_MAX_BYTES:
                raise DamagedStreamError(f"an event is longer than {EVENT_MAX_BYTES} bytes")
            self._rest = data
            return b""
        block, self._rest = (data, b"") if cut == len(data) else (data[:cut], data[cut:])
        if block.endswith(_DONE):
            self.has_ended = True
        if self.has_failed or any(mark in block for mark in _USAGE) or any(mark in block for mark in _ERROR):
            block = b"".join(event for event in _events(block) if self._passes(event))
        self.events += block.count(_END)
        return block

    def _passes(self, event: bytes) -> bool:
        if self.has_failed or event.startswith(_ERROR):
            self.has_failed = True
            return False
        if not any(mark in event for mark in _USAGE):
            return True
        answer = read_answer(event.removeprefix(b"data: "))
        if answer is None:
            raise DamagedStreamError("a usage event is no JSON")
        if answer.usage is not None:
            self.usage = answer.usage
        return self.show_usage or bool(answer.choices)


def _events(block: bytes) -> list[bytes]:
    return [event + _END for event in block.split(_END)[:-1]]
