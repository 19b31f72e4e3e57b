"""How large a request may be in each of its dimensions, and how a request beyond them is refused.

Read by every check of `allowlist`; the size of the whole body is the edge's to bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from hanmaru_contracts.errors import ErrorCode, HanmaruError


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds, inclusive."""

    depth: int = 32
    """Levels of nesting in what a caller may shape freely: schemas and tool-call arguments."""
    model_chars: int = 256
    messages: int = 4096
    content_parts: int = 4096
    """Text parts of one message."""
    output_tokens: int = 10_000_000
    """Sanity alone; the model's context is the real bound."""
    n: int = 8
    stop_strings: int = 16
    stop_chars: int = 256
    """Of one stop string."""
    stop_token_ids: int = 64
    token_id: int = 2**31 - 1
    logit_bias_entries: int = 300
    top_logprobs: int = 20
    tools: int = 128
    tools_bytes: int = 512 * 1024
    """All of `tools` as it was sent."""
    field_bytes: int = 128 * 1024
    """Any field but messages, prompt and tools, as it was sent: refused before it is parsed."""
    arguments_chars: int = 2 * 1024 * 1024
    """Arguments of all tool calls in the messages together; each is read as JSON."""
    tool_calls: int = 128
    """Of one assistant message."""
    schema_bytes: int = 64 * 1024
    """`response_format`, and each tool's `parameters`, as JSON."""
    schema_repeats: int = 2048
    """Lengths, counts and written-out patterns of the schemas an answer is held to, all of them together."""
    pattern_chars: int = 512
    """One regular expression in such a schema."""
    template_kwargs: int = 16
    template_kwarg_chars: int = 256


DEFAULT_BOUNDS = Bounds()

_SHOWN_CHARS = 64


def refuse(param: str | None, problem: str) -> NoReturn:
    """Refuse the request for its field `param` (a path such as `messages[0].content`)."""
    message = f"{param}: {problem}" if param else problem
    raise HanmaruError(ErrorCode.INVALID_REQUEST, message, param=param)


def shown(value: object) -> str:
    """A caller's value as an error message may repeat it: its beginning, quoted."""
    text = repr(value) if not isinstance(value, str) else repr(value[: _SHOWN_CHARS + 1])
    return text if len(text) <= _SHOWN_CHARS + 2 else text[:_SHOWN_CHARS] + "…"
