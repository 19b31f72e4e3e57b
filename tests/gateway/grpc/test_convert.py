"""Claims about the translation: what a gRPC client says is what a REST client would have said, and the same back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.admission.allowlist import TABLES, Decision
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.grpc import convert
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
from hanmaru_gateway.request import Kind
from hypothesis import given
from hypothesis import strategies as st

SCHEMA = '{"type":"object","properties":{"zeta":{"type":"integer","minimum":1},"alpha":{"type":"string"}}}'


def chat(**fields: Any) -> pb.ChatCompletionRequest:
    return pb.ChatCompletionRequest(model="k-exaone", messages=[pb.ChatMessage(role="user", content="안녕")], **fields)


FULL_CHAT = chat(
    max_completion_tokens=8,
    temperature=0.7,
    top_p=0.9,
    top_k=20,
    min_p=0.1,
    frequency_penalty=-0.5,
    presence_penalty=0.0,
    repetition_penalty=1.1,
    n=2,
    stop=["a", "b"],
    stop_token_ids=[1, 2],
    seed=-(2**63),
    min_tokens=0,
    ignore_eos=False,
    logit_bias={"7": -1.5},
    logprobs=True,
    top_logprobs=3,
    tools=[pb.Tool(function=pb.Function(name="f", description="d", parameters_json=SCHEMA))],
    tool_choice=pb.ToolChoice(mode="auto"),
    parallel_tool_calls=True,
    response_format=pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(name="s", schema_json=SCHEMA)),
    reasoning_effort="low",
    separate_reasoning=True,
    stream_options=pb.StreamOptions(include_usage=True),
    stream_reasoning=False,
    skip_special_tokens=True,
    no_stop_trim=False,
)
FULL_CHAT.chat_template_kwargs.update({"enable_thinking": False, "budget": 7, "share": 0.5, "style": "kurz"})


def test_a_full_chat_request_passes_the_parser_with_every_value() -> None:
    body = json.loads(convert.request_body(FULL_CHAT, stream=True))
    assert body == {
        "model": "k-exaone",
        "messages": [{"role": "user", "content": "안녕"}],
        "max_completion_tokens": 8,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "frequency_penalty": -0.5,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.1,
        "n": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "seed": -(2**63),
        "min_tokens": 0,
        "ignore_eos": False,
        "logit_bias": {"7": -1.5},
        "logprobs": True,
        "top_logprobs": 3,
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": json.loads(SCHEMA)}}
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": json.loads(SCHEMA)}},
        "chat_template_kwargs": {"enable_thinking": False, "budget": 7, "share": 0.5, "style": "kurz"},
        "reasoning_effort": "low",
        "separate_reasoning": True,
        "stream_options": {"include_usage": True},
        "stream_reasoning": False,
        "skip_special_tokens": True,
        "no_stop_trim": False,
        "stream": True,
    }
    parsed = parse_request(Kind.CHAT, convert.request_body(FULL_CHAT, stream=True))
    assert parsed.stream
    assert parsed.include_usage
    assert parsed.max_output_tokens == 8


def test_a_full_request_leaves_no_field_untried() -> None:
    assert {field.name for field, _ in FULL_CHAT.ListFields()} == {
        field.name for field in pb.ChatCompletionRequest.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(
    ("kind", "message"), [(Kind.CHAT, pb.ChatCompletionRequest), (Kind.COMPLETION, pb.CompletionRequest)]
)
def test_grpc_offers_what_the_allow_list_lets_through(kind: Kind, message: type[Message]) -> None:
    offered = {field.name for field in message.DESCRIPTOR.fields} - {"prompt_token_ids"}
    passes = {row.name for row in TABLES[kind] if row.decision in (Decision.FORWARD, Decision.READ)}
    # Older names, and fields of which one value alone is accepted.
    of_no_use = {"stream", "modalities", "best_of", "echo", "suffix"} | ({"max_tokens"} if kind is Kind.CHAT else set())
    assert offered == passes - of_no_use


@pytest.mark.parametrize(
    ("request_message", "prompt"),
    [
        (pb.CompletionRequest(model="m", prompt="once"), "once"),
        (pb.CompletionRequest(model="m", prompt_token_ids=pb.TokenIds(ids=[5, 6])), [5, 6]),
        (pb.CompletionRequest(model="m", prompt_token_ids=pb.TokenIds()), []),
    ],
)
def test_a_prompt_is_text_or_token_ids(request_message: pb.CompletionRequest, prompt: object) -> None:
    assert json.loads(convert.request_body(request_message, stream=False)) == {"model": "m", "prompt": prompt}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (pb.ToolChoice(mode="required"), "required"),
        (pb.ToolChoice(function="f"), {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_a_tool_choice_is_a_word_or_a_function(choice: pb.ToolChoice, expected: object) -> None:
    assert json.loads(convert.request_body(chat(tool_choice=choice), stream=False))["tool_choice"] == expected


def test_the_order_of_a_schemas_properties_is_kept() -> None:
    body = convert.request_body(FULL_CHAT, stream=False)
    assert body.count(b'"zeta":{"type":"integer","minimum":1},"alpha"') == 2


def test_an_answer_can_be_sent_back_as_history() -> None:
    request = pb.ChatCompletionRequest(
        model="m",
        messages=[
            pb.ChatMessage(role="user", content="weather?"),
            pb.ChatMessage(
                role="assistant",
                tool_calls=[
                    pb.ToolCall(
                        id="c1", type="function", index=0, function=pb.FunctionCall(name="f", arguments='{"a":1}')
                    )
                ],
            ),
            pb.ChatMessage(role="tool", tool_call_id="c1", content=""),
        ],
    )
    parsed = parse_request(Kind.CHAT, convert.request_body(request, stream=False))
    messages: Any = parsed.fields["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2]["content"] == ""


@pytest.mark.parametrize(
    ("request_message", "param"),
    [
        (
            chat(tools=[pb.Tool(), pb.Tool(function=pb.Function(name="f", parameters_json="{"))]),
            "tools[1].function.parameters_json",
        ),
        (
            chat(tools=[pb.Tool(function=pb.Function(name="f", parameters_json='{}}, "evil": {'))]),
            "tools[0].function.parameters_json",
        ),
        (
            chat(tools=[pb.Tool(function=pb.Function(name="f", parameters_json="[" * 100_000))]),
            "tools[0].function.parameters_json",
        ),
        (
            chat(response_format=pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(schema_json="x"))),
            "response_format.json_schema.schema_json",
        ),
    ],
)
def test_json_text_that_is_none_is_refused_by_name(request_message: pb.ChatCompletionRequest, param: str) -> None:
    with pytest.raises(HanmaruError) as error:
        convert.request_body(request_message, stream=False)
    assert error.value.code is ErrorCode.INVALID_REQUEST
    assert error.value.param == param


def _with_kwarg(number: float) -> pb.ChatCompletionRequest:
    request = chat()
    request.chat_template_kwargs["share"] = number
    return request


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_is_refused_by_name(number: float) -> None:
    for request, param in (
        (chat(top_p=number), "top_p"),
        (chat(logit_bias={"7": number}), "logit_bias"),
        (_with_kwarg(number), "chat_template_kwargs.share"),
    ):
        with pytest.raises(HanmaruError) as error:
            convert.request_body(request, stream=False)
        assert error.value.param == param


@given(
    text=st.text(),
    temperature=st.floats(0, 2),
    seed=st.integers(-(2**63), 2**63 - 1),
    bias=st.dictionaries(st.integers(0, 2**31 - 1).map(str), st.floats(-100, 100), max_size=5),
    stops=st.lists(st.text(min_size=1, max_size=5), max_size=4),
)
def test_values_arrive_exactly(
    text: str, temperature: float, seed: int, bias: dict[str, float], stops: list[str]
) -> None:
    request = pb.ChatCompletionRequest(
        model="m",
        messages=[pb.ChatMessage(role="user", content=text)],
        temperature=temperature,
        seed=seed,
        logit_bias=bias,
        stop=stops,
    )
    body = json.loads(convert.request_body(request, stream=False))
    assert body["messages"] == [{"role": "user", "content": text}]
    assert body["temperature"] == temperature
    assert body["seed"] == seed
    assert body.get("logit_bias", {}) == bias
    assert body.get("stop", []) == stops


# --- Answers

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4},
    "reasoning_tokens": 0,
}
TOKEN = {
    "token": "é",
    "bytes": [195, 169],
    "logprob": -0.1,
    "top_logprobs": [{"token": "e", "bytes": [101], "logprob": -2.5}],
}


def test_a_chat_answer_keeps_everything_a_client_reads() -> None:
    body = {
        "id": "req-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "k-exaone",
        "metadata": {"weight_version": "default"},
        "choices": [
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "hm",
                    "tool_calls": [
                        {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                "logprobs": {"content": [TOKEN]},
                "finish_reason": "tool_calls",
                "matched_stop": None,
            }
        ],
        "usage": USAGE,
    }
    answer = convert.chat_response(json.dumps(body).encode())
    assert json_format.MessageToDict(answer, preserving_proto_field_name=True) == {
        "id": "req-1",
        "created": "1700000000",
        "model": "k-exaone",
        "choices": [
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "reasoning_content": "hm",
                    "tool_calls": [
                        {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                "logprobs": {
                    "content": [
                        {
                            "token": "é",
                            "bytes": "w6k=",
                            "logprob": -0.1,
                            "top_logprobs": [{"token": "e", "bytes": "ZQ==", "logprob": -2.5}],
                        }
                    ]
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "total_tokens": 11,
            "cached_tokens": 4,
            "reasoning_tokens": 0,
        },
    }
    assert not answer.choices[0].message.HasField("content")


def test_a_completions_parallel_lists_become_one_list_of_tokens() -> None:
    body = {
        "id": "req-1",
        "model": "m",
        "created": 1,
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "finish_reason": "length",
                "logprobs": {
                    "tokens": ["a", "b"],
                    "token_logprobs": [None, -0.5],
                    "top_logprobs": [None, {"b": -0.5, "c": -1.5}],
                    "text_offset": [-1, 1],
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None},
    }
    first, second = convert.completion_response(json.dumps(body).encode()).choices[0].logprobs
    assert not first.HasField("logprob")
    assert not first.HasField("text_offset")
    assert dict(first.top_logprobs) == {}
    assert second == pb.CompletionToken(token="b", logprob=-0.5, text_offset=1, top_logprobs={"b": -0.5, "c": -1.5})


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps({"id": "req-1", "created": 1, "model": "m", **fields}).encode() + b"\n\n"


def delta(index: int, **fields: object) -> dict[str, object]:
    return {"index": index, "delta": fields, "finish_reason": None, "logprobs": None, "matched_stop": None}


def test_all_events_of_a_block_become_one_message() -> None:
    block = (
        event(choices=[delta(0, role="assistant", content="")])
        + event(choices=[delta(0, content="안")])
        + event(choices=[delta(1, content="녕\n\n")])
        + event(choices=[], usage=USAGE)
        + b"data: [DONE]\n\n"
    )
    part = convert.chat_stream_part(block)
    assert part is not None
    assert [(choice.index, choice.delta.content) for choice in part.choices] == [(0, ""), (0, "안"), (1, "녕\n\n")]
    assert part.choices[0].delta.role == "assistant"
    assert part.usage.completion_tokens == 2
    assert (part.id, part.created, part.model) == ("req-1", 1, "m")


def test_a_block_of_a_completion_becomes_one_message() -> None:
    block = event(choices=[{"index": 0, "text": "a"}]) + event(choices=[{"index": 0, "text": "b"}])
    part = convert.completion_stream_part(block)
    assert part is not None
    assert [choice.text for choice in part.choices] == ["a", "b"]
    assert not part.HasField("usage")


def test_the_streams_end_alone_is_no_message() -> None:
    assert convert.chat_stream_part(b"data: [DONE]\n\n") is None
    assert convert.completion_stream_part(b"data: [DONE]\n\n") is None


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"choices": 3}', b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_none_is_the_workers_fault(body: bytes) -> None:
    for read in (convert.chat_response, convert.completion_response):
        with pytest.raises(HanmaruError) as error:
            read(body)
        assert error.value.code is ErrorCode.WORKER_LOST
