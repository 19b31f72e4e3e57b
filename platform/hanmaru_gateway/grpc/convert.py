"""Between protobuf messages and the OpenAI JSON that the flow reads and answers; pure.

A request becomes the body a REST client would have sent, so that one parser and one allow-list check both. An answer's
JSON is read by the shapes below: what is not in them (the engine's extras) does not travel.

Schemas travel as JSON text, because the order of properties steers a model and is part of the prefix cache's key, and
protobuf's maps keep none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb

_Scalar = TypeVar("_Scalar")
_JSON_TEXT = "_json"
"""Ending of fields that hold JSON text; the field they stand for is named without it."""

# --- Requests -------------------------------------------------------------------------------------------------------


def request_body(request: pb.ChatCompletionRequest | pb.CompletionRequest, *, stream: bool) -> bytes:
    """The OpenAI JSON of a request. Raises HanmaruError (INVALID_REQUEST) on JSON text that is none."""
    fields = _fields(request, "")
    if stream:
        fields["stream"] = True
    token_ids = fields.pop("prompt_token_ids", None)
    if token_ids is not None:
        fields["prompt"] = token_ids.get("ids", [])
    return msgspec.json.encode(fields)


def _fields(message: Message, path: str) -> dict[str, Any]:
    """The set fields by name. `path` ends with a dot, or is empty at the top."""
    fields: dict[str, Any] = {}
    for field, value in message.ListFields():
        name = field.name
        if name.endswith(_JSON_TEXT):
            fields[name.removesuffix(_JSON_TEXT)] = _parsed(value, f"{path}{name}")
        elif field.message_type is None:
            fields[name] = list(value) if field.is_repeated else _finite(value, f"{path}{name}")
        elif field.message_type.GetOptions().map_entry:
            fields[name] = {key: _finite(item, f"{path}{name}") for key, item in value.items()}
        elif field.is_repeated:
            fields[name] = [_value(item, f"{path}{name}[{index}]") for index, item in enumerate(value)]
        else:
            fields[name] = _value(value, f"{path}{name}")
    return fields


def _value(message: Message, path: str) -> Any:
    match message:
        case pb.ToolChoice():
            if message.WhichOneof("choice") == "function":
                return {"type": "function", "function": {"name": message.function}}
            return message.mode
        case pb.Tool():
            return {"type": "function", **_fields(message, f"{path}.")}
        case Struct():
            return {name: _plain(value, f"{path}.{name}") for name, value in message.fields.items()}
        case _:
            return _fields(message, f"{path}.")


def _plain(value: Value, path: str) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        # Struct knows doubles alone; a template that counts wants whole numbers.
        number = _finite(value.number_value, path)
        return int(number) if number.is_integer() else number
    if kind == "struct_value":
        return {name: _plain(item, f"{path}.{name}") for name, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(item, path) for item in value.list_value.values]
    return None if kind in ("null_value", None) else getattr(value, kind)


def _finite(value: _Scalar, path: str) -> _Scalar:
    """The value; JSON has no words for infinities, and its writer would turn them into an absent field."""
    if isinstance(value, float) and not math.isfinite(value):
        raise HanmaruError(ErrorCode.INVALID_REQUEST, f"{path}: is not finite; send a number", param=path)
    return value


def _parsed(text: str, path: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise HanmaruError(
            ErrorCode.INVALID_REQUEST, f"{path}: is not valid JSON; send a JSON Schema as text", param=path
        ) from None


# --- Answers --------------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    function: _Function | None = None
    index: int | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Alternative(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _ChatChoice(msgspec.Struct):
    index: int
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _CompletionLogprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class _CompletionChoice(msgspec.Struct):
    index: int
    text: str = ""
    finish_reason: str | None = None
    logprobs: _CompletionLogprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    total_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    reasoning_tokens: int | None = None


class _ChatAnswer(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_ChatChoice] = []
    usage: _Usage | None = None


class _CompletionAnswer(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_CompletionChoice] = []
    usage: _Usage | None = None


_Answer = TypeVar("_Answer", _ChatAnswer, _CompletionAnswer)

_chat = msgspec.json.Decoder(_ChatAnswer)
_completion = msgspec.json.Decoder(_CompletionAnswer)


def chat_response(body: bytes) -> pb.ChatCompletionResponse:
    """A whole chat answer. Raises HanmaruError (WORKER_LOST) when the body is none."""
    answer = _decoded(_chat, body)
    return pb.ChatCompletionResponse(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[
            pb.ChatChoice(
                index=choice.index,
                message=_message(choice.message),
                finish_reason=choice.finish_reason,
                logprobs=_logprobs(choice.logprobs),
            )
            for choice in answer.choices
        ],
        usage=_usage(answer.usage),
    )


def completion_response(body: bytes) -> pb.CompletionResponse:
    """A whole completion. Raises HanmaruError (WORKER_LOST) when the body is none."""
    answer = _decoded(_completion, body)
    return pb.CompletionResponse(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[_completion_choice(choice) for choice in answer.choices],
        usage=_usage(answer.usage),
    )


def chat_stream_part(block: bytes) -> pb.StreamChatCompletionResponse | None:
    """One message of all events in the block; None when it holds only the end. Raises HanmaruError (WORKER_LOST)."""
    part: pb.StreamChatCompletionResponse | None = None
    for answer in _events(_chat, block):
        if part is None:
            part = pb.StreamChatCompletionResponse(id=answer.id, created=answer.created, model=answer.model)
        for choice in answer.choices:
            part.choices.add(
                index=choice.index,
                delta=_message(choice.delta),
                finish_reason=choice.finish_reason,
                logprobs=_logprobs(choice.logprobs),
            )
        if (usage := _usage(answer.usage)) is not None:
            part.usage.CopyFrom(usage)
    return part


def completion_stream_part(block: bytes) -> pb.StreamCompletionResponse | None:
    """As `chat_stream_part`, of a completion."""
    part: pb.StreamCompletionResponse | None = None
    for answer in _events(_completion, block):
        if part is None:
            part = pb.StreamCompletionResponse(id=answer.id, created=answer.created, model=answer.model)
        part.choices.extend(_completion_choice(choice) for choice in answer.choices)
        if (usage := _usage(answer.usage)) is not None:
            part.usage.CopyFrom(usage)
    return part


def _decoded(decoder: msgspec.json.Decoder[_Answer], body: bytes) -> _Answer:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise HanmaruError(ErrorCode.WORKER_LOST, "the worker's answer could not be read; try again") from None


def _events(decoder: msgspec.json.Decoder[_Answer], block: bytes) -> Iterator[_Answer]:
    for event in block.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data and data != b"[DONE]":
            yield _decoded(decoder, data)


def _message(message: _Message | None) -> pb.ChatMessage:
    if message is None:
        return pb.ChatMessage()
    return pb.ChatMessage(
        role=message.role or "",
        content=message.content,
        reasoning_content=message.reasoning_content,
        tool_calls=[_tool_call(call) for call in message.tool_calls or ()],
    )


def _tool_call(call: _ToolCall) -> pb.ToolCall:
    function = call.function
    return pb.ToolCall(
        id=call.id,
        type=call.type,
        index=call.index,
        function=None if function is None else pb.FunctionCall(name=function.name, arguments=function.arguments),
    )


def _logprobs(logprobs: _Logprobs | None) -> pb.ChatLogprobs | None:
    if logprobs is None or logprobs.content is None:
        return None
    return pb.ChatLogprobs(
        content=[
            pb.TokenLogprob(
                token=token.token,
                logprob=token.logprob,
                bytes=bytes(token.bytes or ()),
                top_logprobs=[
                    pb.TopLogprob(token=other.token, logprob=other.logprob, bytes=bytes(other.bytes or ()))
                    for other in token.top_logprobs
                ],
            )
            for token in logprobs.content
        ]
    )


def _completion_choice(choice: _CompletionChoice) -> pb.CompletionChoice:
    return pb.CompletionChoice(
        index=choice.index,
        text=choice.text,
        finish_reason=choice.finish_reason,
        logprobs=[] if choice.logprobs is None else _completion_tokens(choice.logprobs),
    )


def _completion_tokens(logprobs: _CompletionLogprobs) -> list[pb.CompletionToken]:
    """OpenAI's parallel lists as one list; the optional ones can be shorter than the tokens."""
    tops: Sequence[dict[str, float] | None] = logprobs.top_logprobs or ()
    offsets: Sequence[int] = logprobs.text_offset or ()
    return [
        pb.CompletionToken(
            token=token,
            logprob=logprob,
            # Engines that keep no offsets say -1.
            text_offset=offsets[i] if i < len(offsets) and offsets[i] >= 0 else None,
            top_logprobs=(tops[i] if i < len(tops) else None) or {},
        )
        for i, (token, logprob) in enumerate(zip(logprobs.tokens, logprobs.token_logprobs, strict=False))
    ]


def _usage(usage: _Usage | None) -> pb.Usage | None:
    if usage is None:
        return None
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        total_tokens=usage.total_tokens,
        cached_tokens=None if usage.prompt_tokens_details is None else usage.prompt_tokens_details.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
