"""Turns a request's body into a `ParsedRequest`, or refuses it naming the field at fault. Pure; called by `flow`.

The body is read by one parser, once, and what the engine gets is written anew from the result: duplicate keys (the
last one counts), odd escapes or spaces never reach it. The top level is first cut into its fields without parsing
them, so that an unknown or forbidden field costs nothing; each remaining field is then parsed by the type in its row
of `allowlist` and refused at its first wrong value. Nesting cannot hurt: shapes are fixed, and where a caller may nest
freely the parser counts levels and the row bounds them.

Left out: the size of the body (the edge's), whether the model exists, and whether prompt and output fit its context.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec

from hanmaru_gateway.admission.allowlist import TABLES, Decision, Effort, Field, StreamOptions
from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS, Bounds, refuse
from hanmaru_gateway.admission.schemas import check_compiled
from hanmaru_gateway.request import Kind, ParsedRequest

COMPLETION_MAX_TOKENS = 16
"""What OpenAI's completions generate when nobody says how many; chat goes on to the end of the context."""

_ABSENT = msgspec.Raw()


class _Table:
    """One kind's rows, compiled: the cut of the top level, and a parser a row."""

    def __init__(self, rows: tuple[Field, ...]) -> None:
        names: list[tuple[str, Any, Any]] = [(row.name, msgspec.Raw, _ABSENT) for row in rows]
        self.cut = msgspec.json.Decoder(msgspec.defstruct("Body", names, frozen=True, forbid_unknown_fields=True))
        self.rows = [(row, msgspec.json.Decoder(_row_type(row)) if row.type is not None else None) for row in rows]


def _row_type(row: Field) -> Any:
    return row.type if row.is_required else row.type | None


_TABLES = {kind: _Table(rows) for kind, rows in TABLES.items()}


def parse_request(kind: Kind, body: bytes, bounds: Bounds = DEFAULT_BOUNDS) -> ParsedRequest:
    """The request in `body`. Raises nothing but HanmaruError(INVALID_REQUEST), whose `param` names the field."""
    table = _TABLES[kind]
    values: dict[str, Any] = {}
    for (row, decoder), piece in zip(table.rows, msgspec.structs.astuple(_cut(table, body)), strict=True):
        if piece is _ABSENT:
            if row.is_required:
                refuse(row.name, "is missing; it is required")
        elif row.decision is Decision.GATEWAY:
            refuse(row.name, "is set by the gateway alone; leave it out")
        elif row.decision is Decision.REFUSE:
            refuse(row.name, f"is not accepted; {row.rule}")
        elif decoder is not None and row.check is not None:
            if row.bytes_bound is not None and len(piece) > getattr(bounds, row.bytes_bound):
                refuse(row.name, f"takes {len(piece)} bytes; at most {getattr(bounds, row.bytes_bound)} are accepted")
            value = _parse(decoder, piece, row.name)
            if value is not None and (accepted := row.check(value, row.name, bounds)) is not None:
                values[row.name] = accepted
    return _assemble(kind, values, bounds)


def _cut(table: _Table, body: bytes) -> msgspec.Struct:
    try:
        str(body, "utf-8")  # skipped values are not looked into, so their encoding is checked here
        return table.cut.decode(body)
    except UnicodeDecodeError as exc:
        refuse(None, f"the body is not valid UTF-8 (byte {exc.start}); send JSON in UTF-8")
    except RecursionError:
        refuse(None, "the body nests far too deeply; flatten it")
    except msgspec.ValidationError as exc:
        if unknown := _UNKNOWN.match(str(exc)):
            name = unknown[1][:_NAME_CHARS]
            refuse(name, "is not a field of this request; leave it out")
        refuse(None, "the body is no JSON object; send one object with the request's fields")
    except msgspec.DecodeError as exc:
        refuse(None, f"the body is not valid JSON ({exc})")


_NAME_CHARS = 64
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_WHERE = re.compile(r" - at `\$(.*)`\Z", re.DOTALL)


def _parse(decoder: msgspec.json.Decoder[Any], piece: msgspec.Raw, name: str) -> Any:
    try:
        return decoder.decode(piece)
    except RecursionError:
        refuse(name, "nests far too deeply; flatten it")
    except msgspec.ValidationError as exc:
        text = str(exc)
        where = _WHERE.search(text)
        path = name + (where[1].replace("[...]", "") if where else "")
        problem = text[: where.start()] if where else text
        if unknown := _UNKNOWN.match(problem):
            refuse(f"{path}.{unknown[1][:_NAME_CHARS]}", "is not a field known here; leave it out")
        if missing := _MISSING.match(problem):
            refuse(f"{path}.{missing[1]}", "is missing; it is required")
        refuse(path, problem[0].lower() + problem[1:_PROBLEM_CHARS] + _hint(path))
    except msgspec.DecodeError as exc:
        refuse(name, f"is not valid JSON ({exc})")


_PROBLEM_CHARS = 200
_EXPECTED = (
    (re.compile(r"messages\[\d+\]\.content\[\d+\]\.type"), "only parts of type 'text' are accepted"),
    (re.compile(r"messages\[\d+\]\.role"), "expected system, developer, user, assistant or tool"),
    (re.compile(r"response_format\.type"), "expected text, json_object or json_schema"),
    (re.compile(r"(tools\[\d+\]|tool_choice|messages\[\d+\]\.tool_calls\[\d+\])\.type"), "expected function"),
    (re.compile(r"reasoning_effort"), "expected one of " + ", ".join(get_args(Effort))),
)


def _hint(path: str) -> str:
    """What was expected, where the parser says only what was seen."""
    return next((f"; {expected}" for pattern, expected in _EXPECTED if pattern.fullmatch(path)), "")


def _assemble(kind: Kind, values: dict[str, Any], bounds: Bounds) -> ParsedRequest:
    """What no field can decide by itself."""
    stream = values.pop("stream", False)
    options: StreamOptions | None = values.pop("stream_options", None)
    if options is not None and not stream:
        refuse("stream_options", "is given without `stream`; set `stream` to true or leave it out")
    max_output_tokens = _max_output_tokens(kind, values)
    if max_output_tokens is not None and values.get("min_tokens", 0) > max_output_tokens:
        refuse("min_tokens", f"is {values['min_tokens']}, more than the {max_output_tokens} tokens asked for")
    is_held_to_schema = "response_format" in values
    if kind is Kind.CHAT:
        is_held_to_schema |= _check_tool_use(values, bounds)
        if values.get("top_logprobs") and not values.get("logprobs"):
            refuse("top_logprobs", "is given without `logprobs`; set `logprobs` to true")
        _apply_effort(values)
    if is_held_to_schema and values.get("min_tokens"):
        # A schema's end allows only the token that ends the answer, and min_tokens forbids that one: with no token
        # left, sampling ends the engine (seen: SGLang 0.5.23, November 2026).
        refuse("min_tokens", "cannot hold together with a schema, which says itself when the answer ends; leave it out")
    return ParsedRequest(
        kind=kind,
        route=values.pop("model"),
        stream=stream,
        include_usage=bool(options and options.include_usage),
        max_output_tokens=max_output_tokens,
        n=values.get("n", 1),
        fields=values,
    )


def _max_output_tokens(kind: Kind, values: dict[str, Any]) -> int | None:
    """The token limit, under whichever names it was sent; afterwards only the name the engine reads is set."""
    older: int | None = values.pop("max_tokens", None)
    if kind is Kind.COMPLETION:
        values["max_tokens"] = limit = older or COMPLETION_MAX_TOKENS
        return limit
    newer: int | None = values.pop("max_completion_tokens", None)
    if older is not None and newer is not None and older != newer:
        refuse("max_tokens", f"is {older}, but max_completion_tokens is {newer}; send one of them")
    limit_or_none = newer if newer is not None else older
    if limit_or_none is not None:
        values["max_completion_tokens"] = limit_or_none
    return limit_or_none


def _check_tool_use(values: dict[str, Any], bounds: Bounds) -> bool:
    """Whether the engine holds the answer to the tools' schemas, instead of only showing them to the model."""
    functions = [tool["function"] for tool in values.get("tools", ())]
    choice = values.get("tool_choice", "auto")
    is_demanded = choice not in ("auto", "none")
    if is_demanded and not functions:
        refuse("tool_choice", "asks for a tool call, but `tools` names no function")
    if isinstance(choice, dict) and all(choice["function"]["name"] != function["name"] for function in functions):
        refuse("tool_choice.function.name", "is not the name of one of `tools`")
    if is_demanded and "response_format" in values:
        refuse("response_format", "cannot hold together with a tool_choice that demands a tool call; send one of them")
    is_held = is_demanded or (choice != "none" and any(function.get("strict") for function in functions))
    if is_held:
        check_compiled([function["parameters"] for function in functions if "parameters" in function], "tools", bounds)
    return is_held


def _apply_effort(values: dict[str, Any]) -> None:
    # As the engine does it; here as well, because the gateway renders the template.
    effort = values.get("reasoning_effort")
    if effort is not None:
        thinks = effort != "none"
        values["chat_template_kwargs"] = {
            "thinking": thinks,
            "enable_thinking": thinks,
            **values.get("chat_template_kwargs", {}),
        }
