"""The one allow-list: what is decided about every field of the engine's chat and completion requests.

Each row says what happens to a field and, when it is handed on, its type, its bound and the words of its rule; the
reference page is written from the same rows. `fields.parse_request` walks them. A field that has no row is refused.
A test walks the pinned engine's request classes and fails on a field nobody decided about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import msgspec

from hanmaru_gateway.admission.bounds import Bounds, refuse, shown
from hanmaru_gateway.admission.messages import (
    Message,
    NamedTool,
    ToolDefinition,
    check_messages,
    check_tool_choice,
    check_tools,
)
from hanmaru_gateway.admission.schemas import check_compiled, check_schema
from hanmaru_gateway.request import Kind


class Decision(StrEnum):
    """What happens to a field that a client sends."""

    FORWARD = "forward"
    """Checked, bounded, handed on to the engine."""
    READ = "read"
    """Checked and read by the gateway, which tells the engine in its own words."""
    GATEWAY = "gateway"
    """Only the gateway may set it: refused."""
    DROP = "drop"
    """Accepted for the sake of OpenAI clients, without effect; never even parsed."""
    REFUSE = "refuse"
    """Refused, with the reason."""


# A check gets a value of its row's type, the field's name and the bounds; it returns what is handed on, None for
# nothing, or refuses. The types of the rows differ, so the table as a whole can only say Any.
Check = Callable[[Any, str, Bounds], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One row."""

    name: str
    decision: Decision
    rule: str = ""
    """For people, completed with the bounds by `str.format`; of a refused field: what to do instead."""
    type: Any = None
    """What msgspec parses it as; None when it is not parsed."""
    check: Check | None = None
    is_required: bool = False
    bytes_bound: str | None = "field_bytes"
    """Name of the bound on what was sent, checked before it is parsed; None: only the body's bounds it."""


def _as_it_is(value: object, _name: str, _bounds: Bounds) -> object:
    return value


def _forward(
    name: str, type_: Any, check: Check = _as_it_is, *, rule: str = "", bytes_bound: str | None = "field_bytes"
) -> Field:
    return Field(name=name, decision=Decision.FORWARD, type=type_, check=check, rule=rule, bytes_bound=bytes_bound)


def _prompt(name: str, type_: Any, check: Check, *, rule: str) -> Field:
    """What the model reads: required, and as long as the body and the model's context allow."""
    return Field(
        name=name, decision=Decision.FORWARD, type=type_, check=check, rule=rule, is_required=True, bytes_bound=None
    )


def _read(name: str, type_: Any, check: Check = _as_it_is, *, rule: str = "", required: bool = False) -> Field:
    return Field(name=name, decision=Decision.READ, type=type_, check=check, rule=rule, is_required=required)


def _number(name: str, type_: type[int] | type[float], low: float, high: float, *, above: bool = False) -> Field:
    """A number from `low` (excluded when `above`) to `high`."""
    rule = f"more than {low:g}, up to {high:g}" if above else f"{low:g} to {high:g}"

    def check(value: float, where: str, _bounds: Bounds) -> float:
        if not (low < value <= high if above else low <= value <= high):
            refuse(where, f"is {shown(value)}; expected {rule}")
        return value

    return _forward(name, type_, check, rule=rule)


def _count(bound: str, *, low: int = 0) -> Check:
    """A whole number from `low` to the bound of that name."""

    def check(value: int, where: str, bounds: Bounds) -> int:
        high: int = getattr(bounds, bound)
        if not low <= value <= high:
            refuse(where, f"is {shown(value)}; expected {low} to {high}")
        return value

    return check


def _only(accepted: object, instead: str) -> Check:
    """The one value that changes nothing; it is not handed on."""

    def check(value: object, where: str, _bounds: Bounds) -> None:
        if value != accepted:
            refuse(where, f"is {shown(value)}; {instead}")

    return check


def _check_model(value: str, where: str, bounds: Bounds) -> str:
    if not 1 <= len(value) <= bounds.model_chars:
        refuse(where, f"has {len(value)} characters; expected 1 to {bounds.model_chars}")
    return value


def _check_prompt(value: str | list[int | str], where: str, bounds: Bounds) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if not value:
        refuse(where, "is empty; send text or token ids")
    if isinstance(value, str):
        return value
    ids = [token for token in value if isinstance(token, int)]
    if len(ids) != len(value):
        refuse(where, f"is a batch of {len(value)} prompts; send one prompt a request")
    if min(ids) < 0 or max(ids) > bounds.token_id:
        refuse(where, f"has a token id of {min(ids) if min(ids) < 0 else max(ids)}; expected 0 to {bounds.token_id}")
    return ids


def _check_stop(value: str | list[str], where: str, bounds: Bounds) -> list[str] | None:
    stops = [value] if isinstance(value, str) else value
    if len(stops) > bounds.stop_strings:
        refuse(where, f"has {len(stops)} strings; at most {bounds.stop_strings} are accepted")
    for stop in stops:
        if not 1 <= len(stop) <= bounds.stop_chars:
            refuse(where, f"has a string of {len(stop)} characters; expected 1 to {bounds.stop_chars}")
    return stops or None


def _check_stop_token_ids(value: list[int], where: str, bounds: Bounds) -> list[int] | None:
    if len(value) > bounds.stop_token_ids:
        refuse(where, f"has {len(value)} ids; at most {bounds.stop_token_ids} are accepted")
    for token in value:
        if not 0 <= token <= bounds.token_id:
            refuse(where, f"has a token id of {shown(token)}; expected 0 to {bounds.token_id}")
    return value or None


_TOKEN_KEY = re.compile(r"0|[1-9][0-9]{0,9}")


def _check_logit_bias(value: dict[str, float], where: str, bounds: Bounds) -> dict[str, float] | None:
    if len(value) > bounds.logit_bias_entries:
        refuse(where, f"has {len(value)} entries; at most {bounds.logit_bias_entries} are accepted")
    for token, bias in value.items():
        if not _TOKEN_KEY.fullmatch(token) or int(token) > bounds.token_id:
            refuse(where, f"has the key {shown(token)}; expected a token id as a string, 0 to {bounds.token_id}")
        if not -100 <= bias <= 100:
            refuse(where, f"gives token {token} a bias of {shown(bias)}; expected -100 to 100")
    return value or None


def _check_top_k(value: int, where: str, bounds: Bounds) -> int:
    if value != -1 and not 1 <= value <= bounds.token_id:
        refuse(where, f"is {shown(value)}; expected -1 (all tokens) or 1 to {bounds.token_id}")
    return value


class JsonSchema(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"schema_": "schema"}
):
    """`json_schema` of a response format."""

    name: str
    schema_: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def _check_response_format(value: ResponseFormat, where: str, bounds: Bounds) -> object:
    if (value.type == "json_schema") != (value.json_schema is not None):
        refuse(where, f"has type {value.type}: give `json_schema` exactly when the type is json_schema")
    if value.json_schema is not None:
        if not 1 <= len(value.json_schema.name) <= _SCHEMA_NAME_CHARS:
            refuse(f"{where}.json_schema.name", f"expected 1 to {_SCHEMA_NAME_CHARS} characters")
        check_schema(value.json_schema.schema_, f"{where}.json_schema.schema", bounds)
        check_compiled([value.json_schema.schema_], f"{where}.json_schema.schema", bounds)
    return None if value.type == "text" else msgspec.to_builtins(value)


_SCHEMA_NAME_CHARS = 256


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """OpenAI's padding against traffic analysis; accepted, never done."""
    continuous_usage_stats: bool | None = None


def _check_stream_options(value: StreamOptions, where: str, _bounds: Bounds) -> StreamOptions:
    if value.continuous_usage_stats:
        refuse(f"{where}.continuous_usage_stats", "is not offered; usage comes once, in the last chunk (include_usage)")
    return value


_KWARG_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KWARGS_TAKEN = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template",
    "conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "tokenizer_kwargs", "bos_token", "eos_token", "pad_token", "unk_token", "reasoning_effort",
    "spaces_between_special_tokens",
})  # fmt: skip
"""What the renderer sets, or what has a field of its own."""

Scalar = bool | int | float | str | None


def _check_template_kwargs(value: dict[str, Scalar], where: str, bounds: Bounds) -> dict[str, Scalar] | None:
    if len(value) > bounds.template_kwargs:
        refuse(where, f"has {len(value)} entries; at most {bounds.template_kwargs} are accepted")
    for key, entry in value.items():
        if not _KWARG_NAME.fullmatch(key) or key in _KWARGS_TAKEN:
            refuse(
                where, f"has the name {shown(key)}, which is not a template's own switch (such as `enable_thinking`)"
            )
        if isinstance(entry, str) and len(entry) > bounds.template_kwarg_chars:
            refuse(f"{where}.{key}", f"has {len(entry)} characters; at most {bounds.template_kwarg_chars} are accepted")
        if isinstance(entry, (int, float)) and not (math.isfinite(entry) and abs(entry) < 2**63):
            refuse(f"{where}.{key}", "is too large a number; expected less than 2 to the 63rd")
    return value or None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _check_seed(value: int, where: str, _bounds: Bounds) -> int:
    if not -(2**63) <= value < 2**63:
        refuse(where, "does not fit in 64 bits")
    return value


_COMMON = (
    _read("model", str, _check_model, rule="1 to {model_chars} characters", required=True),
    _read("stream", bool, rule="true answers in server-sent events"),
    _read("stream_options", StreamOptions, _check_stream_options, rule="`include_usage`; only with `stream`"),
    _number("temperature", float, 0, 2),
    _number("top_p", float, 0, 1, above=True),
    _forward("top_k", int, _check_top_k, rule="-1 (all tokens), or 1 and more"),
    _number("min_p", float, 0, 1),
    _number("frequency_penalty", float, -2, 2),
    _number("presence_penalty", float, -2, 2),
    # The engine divides by it; near zero the quotients overflow.
    _number("repetition_penalty", float, 0.01, 2),
    _forward("seed", int, _check_seed, rule="64 bits, signed"),
    _forward("n", int, _count("n", low=1), rule="1 to {n}; each counts towards the output limits"),
    _read("max_tokens", int, _count("output_tokens", low=1), rule="1 and more, within the model's context"),
    _forward(
        "min_tokens", int, _count("output_tokens"), rule="0 and more, at most the tokens asked for; not with a schema"
    ),
    _forward("stop", str | list[str], _check_stop, rule="up to {stop_strings} strings of 1 to {stop_chars} characters"),
    _forward("stop_token_ids", list[int], _check_stop_token_ids, rule="up to {stop_token_ids} token ids"),
    _forward("ignore_eos", bool, rule="true generates until the token limit"),
    _forward("no_stop_trim", bool, rule="true leaves the stop string in the text"),
    _forward("skip_special_tokens", bool, rule="false shows special tokens as text"),
    _forward(
        "logit_bias",
        dict[str, float],
        _check_logit_bias,
        rule="up to {logit_bias_entries} token ids (as strings), each -100 to 100",
    ),
    _forward(
        "response_format",
        ResponseFormat,
        _check_response_format,
        rule="`text`, `json_object`, or `json_schema` with a small schema (see Schemas)",
    ),
)


def _gateway(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name=name, decision=Decision.GATEWAY) for name in names)


def _drop(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name=name, decision=Decision.DROP) for name in names)


def _refuse(instead: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name=name, decision=Decision.REFUSE, rule=instead) for name in names)


_COMMON_WITHHELD = (
    *_gateway(
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank",
        "data_parallel_rank", "rid", "extra_key", "cache_salt", "priority", "lora_path", "session_id",
        "session_params", "custom_logit_processor", "custom_params", "custom_labels", "input_ids", "input_embeds",
        "return_token_ids", "trust_remote_code",
    ),
    *_drop("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
           "safety_identifier", "prediction"),
    *_refuse("use `response_format` with a JSON schema", "regex", "ebnf", "structural_tag", "json_schema"),
    *_refuse("use `stop`", "stop_regex"),
    *_refuse("the engine's internals are not offered", "return_hidden_states", "return_routed_experts",
             "routed_experts_start_len", "return_cached_tokens_details", "return_spec_tokens_details", "watermark"),
    *_refuse("the models served here read text alone", "images_config", "mm_processor_kwargs"),
)  # fmt: skip

CHAT = (
    _prompt("messages", list[Message], check_messages, rule="1 to {messages} messages of text"),
    *_COMMON,
    _read("max_completion_tokens", int, _count("output_tokens", low=1), rule="as `max_tokens`, its newer name"),
    _forward("logprobs", bool, rule="true tells how likely each token was"),
    _forward("top_logprobs", int, _count("top_logprobs"), rule="0 to {top_logprobs}; only with `logprobs`"),
    _forward(
        "tools",
        list[ToolDefinition],
        check_tools,
        rule="up to {tools} functions, {tools_bytes} bytes together, with small `parameters` (see Schemas)",
        bytes_bound="tools_bytes",
    ),
    _forward(
        "tool_choice",
        str | NamedTool,
        check_tool_choice,
        rule="`none`, `auto`, `required`, or the name of one of `tools`",
    ),
    _forward("parallel_tool_calls", bool, rule="false asks for one call at a time"),
    _forward(
        "chat_template_kwargs",
        dict[str, Scalar],
        _check_template_kwargs,
        rule="up to {template_kwargs} scalars that the model's template knows, such as `enable_thinking`",
    ),
    _forward("reasoning_effort", Effort, rule="`none` turns thinking off unless `chat_template_kwargs` says otherwise"),
    _forward("separate_reasoning", bool, rule="false leaves the thinking in `content`"),
    _forward("stream_reasoning", bool, rule="false sends the thinking in one piece"),
    _read("modalities", list[str], _only(["text"], "only [\"text\"] is served"), rule="`[\"text\"]`"),
    *_COMMON_WITHHELD,
    *_gateway("continue_final_message", "return_prompt_token_ids", "return_meta_info", "return_input_ids_in_sglext",
              "return_output_ids_in_sglext", "add_generation_prompt", "chat_template"),
    *_refuse("use `tools` and `tool_choice`", "functions", "function_call"),
    *_refuse("use `chat_template_kwargs` or `reasoning_effort`", "thinking", "reasoning", "task"),
    *_refuse("the models served here read text alone", "max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video",
             "video_config", "audio", "web_search_options"),
    *_refuse("use `logprobs` and `top_logprobs`", "return_sampling_mask", "sampling_logprobs_mode",
             "return_flat_raw_output_top_logprobs", "return_flat_raw_top_logprobs_b64"),
    *_refuse("ask for it in the messages", "verbosity"),
)  # fmt: skip

COMPLETION = (
    _prompt(
        "prompt",
        str | list[int | str],
        _check_prompt,
        rule="text, or token ids 0 to {token_id}; one prompt a request",
    ),
    *_COMMON,
    _forward("logprobs", int, _count("top_logprobs"), rule="0 to {top_logprobs} alternatives a token"),
    _read("best_of", int, _only(1, "sampling more than is returned is not offered; use `n`"), rule="1"),
    _read("echo", bool, _only(False, "prompts are not sent back"), rule="false"),
    _read("suffix", str, _only("", "filling in the middle is not offered"), rule="empty"),
    *_COMMON_WITHHELD,
)

TABLES: dict[Kind, tuple[Field, ...]] = {Kind.CHAT: CHAT, Kind.COMPLETION: COMPLETION}
