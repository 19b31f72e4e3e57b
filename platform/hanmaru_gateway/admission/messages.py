"""The shape of a conversation: roles, text parts, tools and tool calls; anything else is refused while it is parsed.

msgspec checks the shape and names the path of what is wrong; `check_messages` and `check_tools` bound what a shape
cannot say, and hand on plain dictionaries in the engine's terms. Pure; called through `allowlist`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from hanmaru_gateway.admission.bounds import Bounds, refuse, shown
from hanmaru_gateway.admission.schemas import check_depth, check_schema


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unknown fields are refused; absent ones stay absent when handed on."""


class TextPart(_Shape, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """The only kind of content part: the models served here read text."""

    text: str


Content = str | list[TextPart]


class FunctionCall(_Shape, frozen=True, kw_only=True):
    """What an assistant message called."""

    name: str
    arguments: str
    """A JSON object as text, the way answers carry it."""


class ToolCall(_Shape, frozen=True, kw_only=True):
    """One tool call of an assistant message, as an answer carried it."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall
    index: int | None = None
    """In answers of streams; says nothing in a request."""


class _Message(_Shape, frozen=True, kw_only=True, tag_field="role"):
    name: str | None = None


class System(_Message, frozen=True, kw_only=True, tag="system"):
    """Instructions."""

    content: Content


class Developer(_Message, frozen=True, kw_only=True, tag="developer"):
    """OpenAI's newer word for instructions; handed on as `system`, the word chat templates know."""

    content: Content


class User(_Message, frozen=True, kw_only=True, tag="user"):
    """What the person said."""

    content: Content


class Assistant(_Message, frozen=True, kw_only=True, tag="assistant"):
    """An earlier answer. Its fields are those answers have, so that clients can send answers back unchanged."""

    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    annotations: msgspec.Raw = msgspec.Raw()
    audio: None = None
    function_call: None = None


class Tool(_Message, frozen=True, kw_only=True, tag="tool"):
    """The result of a tool call."""

    content: Content
    tool_call_id: str | None = None


Message = System | Developer | User | Assistant | Tool


class Function(_Shape, frozen=True, kw_only=True):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(_Shape, frozen=True, kw_only=True):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Shape, frozen=True, kw_only=True):
    """Names the function that must be called."""

    name: str


class NamedTool(_Shape, frozen=True, kw_only=True):
    """`tool_choice` that names one function."""

    type: Literal["function"]
    function: NamedFunction


_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_IDENTIFIER_CHARS = 256


def check_messages(messages: list[Message], name: str, bounds: Bounds) -> list[dict[str, object]]:
    """The conversation as dictionaries: `developer` becomes `system`, what only answers carry is left out."""
    if not messages:
        refuse(name, "is empty; send at least one message")
    if len(messages) > bounds.messages:
        refuse(name, f"has {len(messages)} messages; at most {bounds.messages} are accepted")
    arguments_chars = sum(
        len(call.function.arguments)
        for message in messages
        if isinstance(message, Assistant)
        for call in message.tool_calls or ()
    )
    if arguments_chars > bounds.arguments_chars:
        refuse(name, f"has tool calls with {arguments_chars} characters of arguments; at most {bounds.arguments_chars}")
    return [_plain(message, f"{name}[{i}]", bounds) for i, message in enumerate(messages)]


def _plain(message: Message, where: str, bounds: Bounds) -> dict[str, object]:
    if message.name is not None and len(message.name) > _IDENTIFIER_CHARS:
        refuse(f"{where}.name", f"has {len(message.name)} characters; at most {_IDENTIFIER_CHARS} are accepted")
    content = message.content
    if isinstance(content, list) and len(content) > bounds.content_parts:
        refuse(f"{where}.content", f"has {len(content)} parts; at most {bounds.content_parts} are accepted")
    role = "system" if isinstance(message, Developer) else type(message).__struct_config__.tag
    plain: dict[str, object] = {
        "role": role,
        "content": [{"type": "text", "text": part.text} for part in content] if isinstance(content, list) else content,
    }
    if message.name is not None:
        plain["name"] = message.name
    if isinstance(message, Tool) and message.tool_call_id is not None:
        _check_call_id(message.tool_call_id, f"{where}.tool_call_id")
        plain["tool_call_id"] = message.tool_call_id
    if isinstance(message, Assistant):
        if message.reasoning_content is not None:
            plain["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            plain["tool_calls"] = _plain_calls(message.tool_calls, f"{where}.tool_calls", bounds)
        elif content is None:
            refuse(f"{where}.content", "is absent; an assistant message has content or tool_calls")
    return plain


def _plain_calls(calls: list[ToolCall], where: str, bounds: Bounds) -> list[dict[str, object]]:
    if len(calls) > bounds.tool_calls:
        refuse(where, f"has {len(calls)} tool calls; at most {bounds.tool_calls} are accepted")
    plain: list[dict[str, object]] = []
    for i, call in enumerate(calls):
        at = f"{where}[{i}]"
        arguments = call.function.arguments or "{}"
        _check_arguments(arguments, f"{at}.function.arguments", bounds)
        _check_function_name(call.function.name, f"{at}.function.name")
        entry: dict[str, object] = {
            "type": "function",
            "function": {"name": call.function.name, "arguments": arguments},
        }
        if call.id is not None:
            _check_call_id(call.id, f"{at}.id")
            entry["id"] = call.id
        plain.append(entry)
    return plain


def _check_arguments(arguments: str, where: str, bounds: Bounds) -> None:
    # The template renders them as an object, so what is no object would fail there, later and less clearly.
    try:
        parsed = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        refuse(where, "is no JSON object; send the arguments back as the answer carried them")
    check_depth(parsed, where, bounds)


def _check_call_id(value: str, where: str) -> None:
    if not 1 <= len(value) <= _IDENTIFIER_CHARS:
        refuse(where, f"has {len(value)} characters; 1 to {_IDENTIFIER_CHARS} are accepted")


def _check_function_name(value: str, where: str) -> None:
    if not _FUNCTION_NAME.fullmatch(value):
        refuse(where, f"is {shown(value)}; expected 1 to 128 of letters, digits, `_`, `.` and `-`")


def check_tools(tools: list[ToolDefinition], name: str, bounds: Bounds) -> list[dict[str, object]] | None:
    """Tool definitions as dictionaries; None for an empty list, which means the same as none."""
    if len(tools) > bounds.tools:
        refuse(name, f"has {len(tools)} tools; at most {bounds.tools} are accepted")
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        where = f"{name}[{i}].function"
        _check_function_name(tool.function.name, f"{where}.name")
        if tool.function.name in seen:
            refuse(f"{where}.name", f"{shown(tool.function.name)} stands twice; each name stands once")
        seen.add(tool.function.name)
        if tool.function.parameters is not None:
            check_schema(tool.function.parameters, f"{where}.parameters", bounds)
    return msgspec.to_builtins(tools) or None


def check_tool_choice(choice: str | NamedTool, name: str, bounds: Bounds) -> object:
    """`none`, `auto`, `required`, or one named function. That the function exists is checked across fields."""
    if isinstance(choice, NamedTool):
        _check_function_name(choice.function.name, f"{name}.function.name")
        return {"type": "function", "function": {"name": choice.function.name}}
    if choice not in ("none", "auto", "required"):
        refuse(name, f"is {shown(choice)}; expected `none`, `auto`, `required` or a function by name")
    return choice
