"""A body is parsed within bounds, or refused naming the field at fault."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.admission.allowlist import TABLES, Decision
from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.request import Kind, ParsedRequest
from hypothesis import example, given, settings
from hypothesis import strategies as st

HI = [{"role": "user", "content": "hi"}]


def _chat(**fields: object) -> ParsedRequest:
    return parse_request(Kind.CHAT, json.dumps({"model": "k", "messages": HI} | fields).encode())


def _completion(**fields: object) -> ParsedRequest:
    return parse_request(Kind.COMPLETION, json.dumps({"model": "k", "prompt": "hi"} | fields).encode())


def _refusal(kind: Kind, body: bytes) -> HanmaruError:
    with pytest.raises(HanmaruError) as caught:
        parse_request(kind, body)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert len(caught.value.message) < 500
    return caught.value


def test_a_small_request_keeps_what_it_asked_for() -> None:
    parsed = _chat(temperature=0.5, max_tokens=7, stream=True, stream_options={"include_usage": True}, stop="x")
    assert (parsed.route, parsed.stream, parsed.include_usage) == ("k", True, True)
    assert (parsed.max_output_tokens, parsed.n) == (7, 1)
    assert parsed.fields == {"messages": HI, "temperature": 0.5, "stop": ["x"], "max_completion_tokens": 7}


def test_null_means_absent_as_clients_mean_it() -> None:
    assert _chat(temperature=None, stop=None, n=None, stream=None, tools=None).fields == {"messages": HI}


def _message(**fields: object) -> dict[str, object]:
    return {"role": "user", "content": "x"} | fields


def _schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def _tool(**function: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f"} | function}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DEEP = '{"a":' * 40 + "1" + "}" * 40
LONG = json.dumps({"a": "x" * 1_000_000})
PART = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": None}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [_message()] * 4097}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [_message(role="root")]}, "messages[0].role"),
        ({"messages": [_message(role=1)]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [_message(), _message(content=None)]}, "messages[1].content"),
        ({"messages": [_message(content=3)]}, "messages[0].content"),
        ({"messages": [_message(content={"type": "text"})]}, "messages[0].content"),
        ({"messages": [_message(tools=[])]}, "messages[0].tools"),
        ({"messages": [_message(name="x" * 257)]}, "messages[0].name"),
        ({"messages": [_message(content=[PART, IMAGE])]}, "messages[0].content[1].type"),
        ({"messages": [_message(content=[{"type": "input_audio"}])]}, "messages[0].content[0].type"),
        ({"messages": [_message(content=[{"type": "video_url"}])]}, "messages[0].content[0].type"),
        ({"messages": [_message(content=[{"type": "file"}])]}, "messages[0].content[0].type"),
        ({"messages": [_message(content=[{"type": "text"}])]}, "messages[0].content[0].text"),
        ({"messages": [_message(content=[PART | {"cache": 1}])]}, "messages[0].content[0].cache"),
        ({"messages": [_message(content=[PART] * 4097)]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL | {"id": ""}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL | {"type": "x"}]}]}, "messages[0].tool_calls[0].type"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": LONG}}]}] * 3},
            "messages",
        ),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 1}]}, "messages[0].tool_call_id"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 2.0}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {str(i): 0 for i in range(301)}}, "logit_bias"),
        ({"logit_bias": {"x": 0}}, "logit_bias"),
        ({"logit_bias": {"-1": 0}}, "logit_bias"),
        ({"logit_bias": {"٣": 0}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"tools": [_tool()] * 2}, "tools[1].function.name"),
        ({"tools": [_tool(name=f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [_tool(name="not a name")]}, "tools[0].function.name"),
        ({"tools": [_tool(name="")]}, "tools[0].function.name"),
        ({"tools": [_tool(parameters=_nested(40))]}, "tools[0].function.parameters"),
        ({"tools": [_tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [_tool(defer_loading=True)]}, "tools[0].function.defer_loading"),
        ({"tools": [_tool(description="x" * 600_000)]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [_tool(parameters={"maxLength": 9999})], "tool_choice": "required"}, "tools"),
        ({"tools": [_tool(parameters={"maxLength": 9999}, strict=True)]}, "tools"),
        ({"response_format": _schema({"maxLength": 9999})}, "response_format.json_schema.schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": 1}, "tool_choice"),
        (
            {"tools": [_tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        (
            {"tools": [_tool()], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "min_tokens"),
        ({"tools": [_tool()], "tool_choice": "required", "min_tokens": 1}, "min_tokens"),
        ({"tools": [_tool(strict=True)], "min_tokens": 1}, "min_tokens"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "text", "padding": "x" * 200_000}}, "response_format"),
        ({"logit_bias": {str(i): 0 for i in range(100_000)}}, "logit_bias"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text"} | {"json_schema": {"name": "x", "schema": {}}}}, "response_format"),
        ({"response_format": _schema([])}, "response_format.json_schema.schema"),
        ({"response_format": _schema(_nested(40))}, "response_format.json_schema.schema"),
        ({"response_format": _schema({"enum": ["x" * 70_000]})}, "response_format.json_schema.schema"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"__class__": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "x" * 257}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs"),
        ({"reasoning_effort": "ultra"}, "reasoning_effort"),
        ({"reasoning_effort": 0.5}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"regex": "(a{1000}){1000}"}, "regex"),
        ({"ebnf": "root ::= root"}, "ebnf"),
    ],
)
def test_a_bad_chat_field_is_refused_by_its_path(fields: dict[str, object], param: str) -> None:
    error = _refusal(Kind.CHAT, json.dumps({"model": "k", "messages": HI} | fields).encode())
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"messages": HI}, "messages"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "min_tokens"),
    ],
)
def test_a_bad_completion_field_is_refused_by_its_path(fields: dict[str, object], param: str) -> None:
    assert _refusal(Kind.COMPLETION, json.dumps({"model": "k", "prompt": "hi"} | fields).encode()).param == param


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_required_field_that_is_missing_is_named(field: str) -> None:
    body = {"model": "k", "messages": HI}
    del body[field]
    assert _refusal(Kind.CHAT, json.dumps(body).encode()).param == field


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "no JSON object"),
        (b"1", "no JSON object"),
        (b'"x"', "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"model": "k"} x', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid UTF-8 (byte 11)"),
        (b'{"user": "\xff"}', "not valid UTF-8"),
        (b'{"user": "\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"user": NaN}', "not valid JSON"),
        (b'{"user": ' + b"[" * 5_000_000, "nests"),
        (b'{"user": ' + b'{"a":' * 1_000_000, "nests"),
        (b'{"messages": ' + b"[" * 1_000_000, "nests"),
        (b'{"x": ' + b"[" * 1_000_000, "x: is not a field"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    assert said in _refusal(Kind.CHAT, body).message


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "1" * 400 + ".0"])
def test_numbers_beyond_arithmetic_are_refused(text: str) -> None:
    body = f'{{"model": "k", "messages": [{{"role": "user", "content": "x"}}], "temperature": {text}}}'
    _refusal(Kind.CHAT, body.encode())


def test_a_lone_surrogate_is_refused() -> None:
    _refusal(Kind.CHAT, b'{"model": "k", "messages": [{"role": "user", "content": "\\ud800"}]}')


def test_the_last_of_duplicate_keys_counts_and_is_the_only_one_forwarded() -> None:
    body = b'{"model": "k", "messages": [{"role": "user", "content": "x"}], "n": 99, "n": 2}'
    assert parse_request(Kind.CHAT, body).fields["n"] == 2


def test_a_huge_field_name_is_not_repeated_in_full() -> None:
    error = _refusal(Kind.CHAT, b'{"' + b"x" * 1_000_000 + b'": 1}')
    assert error.param == "x" * 64


def test_a_huge_wrong_value_is_not_repeated_in_full() -> None:
    _refusal(Kind.CHAT, json.dumps({"model": "k", "messages": [_message(role="x" * 100_000)]}).encode())


def test_messages_are_handed_on_in_the_words_of_chat_templates() -> None:
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}], "refusal": None},
        {"role": "assistant", "content": "b", "reasoning_content": "c", "audio": None, "annotations": []},
        {"role": "tool", "content": [PART], "tool_call_id": "c"},
    ]
    assert _chat(messages=messages).fields["messages"] == [
        {"role": "system", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
        {"role": "tool", "content": [PART], "tool_call_id": "c"},
    ]


def test_tool_calls_without_arguments_call_with_an_empty_object() -> None:
    calls = [{"function": {"name": "f", "arguments": ""}}]
    [message] = _chat(messages=[{"role": "assistant", "tool_calls": calls}]).fields["messages"]
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        ({}, None),
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 3}, 3),
        ({"max_tokens": 3, "max_completion_tokens": 3}, 3),
    ],
)
def test_both_names_of_the_token_limit_become_the_one_the_engine_reads(
    asked: dict[str, int], limit: int | None
) -> None:
    parsed = _chat(**asked)
    assert parsed.max_output_tokens == limit
    assert parsed.fields.get("max_completion_tokens") == limit
    assert "max_tokens" not in parsed.fields


def test_a_completion_that_does_not_say_how_long_gets_openais_sixteen_tokens() -> None:
    parsed = _completion()
    assert (parsed.max_output_tokens, parsed.fields["max_tokens"]) == (16, 16)


@pytest.mark.parametrize(("prompt", "forwarded"), [("x", "x"), (["x"], "x"), ([1, 2], [1, 2])])
def test_one_prompt_is_text_or_token_ids(prompt: object, forwarded: object) -> None:
    assert _completion(prompt=prompt).fields["prompt"] == forwarded


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}, "min_tokens": 0},
        {"tools": [_tool()]},
        {"tools": [_tool(strict=True)], "tool_choice": "none"},
    ],
)
def test_min_tokens_goes_with_answers_that_no_schema_ends(fields: dict[str, object]) -> None:
    assert _chat(**({"min_tokens": 1} | fields)).fields["messages"]


def test_tools_that_nothing_is_compiled_for_may_bound_lengths_as_they_like() -> None:
    assert _chat(tools=[_tool(parameters={"maxLength": 10**6})]).fields["tools"]


@pytest.mark.parametrize(
    ("fields", "kwargs"),
    [
        ({"reasoning_effort": "none"}, {"thinking": False, "enable_thinking": False}),
        ({"reasoning_effort": "low"}, {"thinking": True, "enable_thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"thinking": True, "enable_thinking": False},
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
    ],
)
def test_reasoning_effort_sets_the_templates_switch_unless_the_caller_did(
    fields: dict[str, object], kwargs: dict[str, object]
) -> None:
    assert _chat(**fields).fields["chat_template_kwargs"] == kwargs


def test_bounds_are_parameters() -> None:
    body = json.dumps({"model": "k", "messages": HI, "n": 2}).encode()
    assert parse_request(Kind.CHAT, body).n == 2
    with pytest.raises(HanmaruError, match="expected 1 to 1"):
        parse_request(Kind.CHAT, body, replace(DEFAULT_BOUNDS, n=1))


# Fuzzing: whatever comes, the answer is a request within the rules or one kind of error.

NAMES = {kind: [row.name for row in TABLES[kind]] for kind in Kind}
WITHHELD = {
    kind: {row.name for row in TABLES[kind] if row.decision not in (Decision.FORWARD, Decision.READ)} for kind in Kind
}

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "text"])
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "function", "name"]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def _never_more_than_a_refusal(kind: Kind, body: bytes) -> None:
    outcome = _outcome(kind, body)
    if isinstance(outcome, HanmaruError):
        assert outcome.code is ErrorCode.INVALID_REQUEST
        assert len(outcome.message) < 1000
    else:
        assert not WITHHELD[kind] & set(outcome.fields)
        assert not {"model", "stream", "stream_options"} & set(outcome.fields)
        assert 1 <= outcome.n <= DEFAULT_BOUNDS.n
        json.dumps(outcome.fields, allow_nan=False)


def _outcome(kind: Kind, body: bytes) -> ParsedRequest | HanmaruError:
    try:
        return parse_request(kind, body)
    except HanmaruError as error:
        return error


@given(st.sampled_from(Kind), st.binary(max_size=200))
@example(Kind.CHAT, b'{"model":"\\')
def test_random_bytes_never_break_the_parser(kind: Kind, body: bytes) -> None:
    _never_more_than_a_refusal(kind, body)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_random_values_never_break_the_parser(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(Kind))
    required: dict[str, object] = {"model": "k"}
    required |= {"messages": HI} if kind is Kind.CHAT else {"prompt": "x"}
    fields = data.draw(st.dictionaries(st.sampled_from(NAMES[kind]), json_values, max_size=4))
    _never_more_than_a_refusal(kind, json.dumps(required | fields).encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cut_and_patched_bodies_never_break_the_parser(data: st.DataObject) -> None:
    whole = json.dumps(
        {
            "model": "k",
            "messages": [{"role": "assistant", "tool_calls": [CALL]}, *HI],
            "tools": [_tool(parameters=_nested(3))],
        }
    ).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    _never_more_than_a_refusal(Kind.CHAT, whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])
