"""What an engine is sent: the caller's checked fields, and what only the gateway may set. Pure; called by `flow`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hanmaru_contracts.names import RequestId

from hanmaru_gateway.request import Kind, ParsedRequest

_encoder = msgspec.json.Encoder()

_NO_TEXT = ({"role": "user", "content": ""},)
"""An engine given token ids reads nothing from messages (SGLang 0.5.23, `serving_chat._process_messages`), but its
request class demands one. So the conversation itself is not sent twice, and no field of a message can mean anything."""


def engine_payload(
    request: ParsedRequest,
    *,
    served_name: str,
    token_ids: Sequence[int],
    output_tokens: int,
    rid: RequestId,
    cache_salt: str,
) -> bytes:
    """The JSON body for the engine's route of the same kind; `output_tokens` is for each of `n`."""
    body: dict[str, object] = {
        **request.fields,
        "model": served_name,
        "max_tokens": output_tokens,
        "rid": rid,
        "cache_salt": cache_salt,
        "stream": request.stream,
    }
    body.pop("max_completion_tokens", None)
    if request.kind is Kind.CHAT:
        body["messages"] = _NO_TEXT
        body["input_ids"] = token_ids
    else:
        body["prompt"] = token_ids
    if request.stream:
        # Always, because the quota is settled by it; the caller sees the chunk only when it asked.
        body["stream_options"] = {"include_usage": True}
    return _encoder.encode(body)
