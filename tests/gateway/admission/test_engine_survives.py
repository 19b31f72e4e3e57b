"""What admission lets through ends no engine: the real one, asked for the extremes one after the other."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_contracts.names import RequestId
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.admission.vocabulary import check_against_model
from hanmaru_gateway.dispatch.payload import engine_payload
from hanmaru_gateway.request import Kind
from hanmaru_testing.engine import Engine, running_engine

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "tiny-k-exaone"
VOCABULARY = json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"]
FLAGS = (
    *("--served-model-name", "k", "--context-length", "2048", "--max-total-tokens", "8192", "--page-size", "16"),
    *("--max-running-requests", "16", "--reasoning-parser", "qwen3", "--tool-call-parser", "hermes"),
)
OUTPUT_TOKENS = 12
PROMPT = [5, 6, 7, 8, 9]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(CHECKPOINT, FLAGS, log_path=tmp_path_factory.mktemp("engine") / "log") as running:
        yield running


def _schema(schema: object) -> dict[str, object]:
    held = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return {"response_format": held, "chat_template_kwargs": {"enable_thinking": False}}


def _tool(**function: object) -> dict[str, object]:
    tools = [{"type": "function", "function": {"name": "f"} | function}]
    return {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}


WORDS = {"type": "object", "properties": {"a": {"type": "string", "const": "b"}}, "required": ["a"]}

EXTREMES: dict[str, dict[str, object]] = {
    "nothing": {},
    "hot": {"temperature": 2, "top_p": 1e-300, "top_k": 2**31 - 1, "min_p": 1},
    "cold": {"temperature": 1e-300},
    "nearly cold": {"temperature": 2e-6, "top_k": 1},
    "repetition encouraged": {"repetition_penalty": 0.01, "frequency_penalty": -2, "presence_penalty": -2},
    "repetition forbidden": {"repetition_penalty": 2, "frequency_penalty": 2, "presence_penalty": 2},
    "least seed": {"seed": -(2**63)},
    "greatest seed": {"seed": 2**63 - 1},
    "bias against": {"logit_bias": {str(i): -100 for i in range(300)}},
    "bias for": {"logit_bias": {str(VOCABULARY - 1 - i): 100 for i in range(300)}},
    "long stops": {"stop": ["\U0001f600" * 256] * 16},
    "odd stops": {"stop": ["\0", "\n", "�", " "]},
    "never before the end": {
        "min_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stop_token_ids": list(range(VOCABULARY - 64, VOCABULARY)),
    },
    "many answers with alternatives": {"n": 8, "logprobs": True, "top_logprobs": 20},
    "a schema with alternatives": _schema(WORDS) | {"n": 8, "logprobs": True, "top_logprobs": 20},
    "a schema against its bias": _schema(WORDS) | {"logit_bias": {str(i): -100 for i in range(300)}},
    "a schema without an end": _schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "a schema beyond the engine": _schema({"type": "integer", "multipleOf": 3}),
    "a schema nothing meets": _schema({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}),
    "a schema that is none": _schema({"type": 5}),
    "a pattern that is none": _schema({"type": "string", "pattern": "("}),
    "a pattern with a zero": _schema({"type": "string", "pattern": "a\0b"}),
    "a pattern of stars": _schema({"type": "string", "pattern": "(((((a*)*)*)*)*)*"}),
    "an empty choice": _schema({"enum": []}),
    "a huge choice": _schema({"enum": [f"v{i}" for i in range(5000)]}),
    "a call demanded": _tool(parameters=WORDS) | {"tool_choice": "required"},
    "a call of nothing": _tool() | {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    "a strict call": _tool(parameters=WORDS, strict=True),
    "parameters that are no schema": _tool(parameters={"type": 5, "required": 3}) | {"tool_choice": "required"},
    "parameters that refer nowhere, only shown": _tool(parameters={"properties": {"a": {"$ref": "#/nope"}}}),
    "much effort": {"reasoning_effort": "max", "separate_reasoning": False, "stream_reasoning": False},
    "odd switches": {"chat_template_kwargs": {"enable_thinking": "yes", "x": 1e18, "y": None}},
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_an_extreme_request_is_answered_or_refused_and_the_next_is_served(engine: Engine, extreme: str) -> None:
    body = {"model": "k", "messages": [{"role": "user", "content": "x"}], "max_tokens": OUTPUT_TOKENS}
    request = parse_request(Kind.CHAT, json.dumps(body | EXTREMES[extreme]).encode())
    check_against_model(request, vocabulary_tokens=VOCABULARY, output_tokens=OUTPUT_TOKENS)
    payload = engine_payload(
        request,
        served_name="k",
        token_ids=PROMPT,
        output_tokens=OUTPUT_TOKENS,
        rid=RequestId(f"req-{list(EXTREMES).index(extreme):032x}"),
        cache_salt="salt",
    )
    headers = {"Content-Type": "application/json"}
    ask = urllib.request.Request(f"{engine.url}{Kind.CHAT.value}", payload, headers)
    try:
        with urllib.request.urlopen(ask, timeout=60) as answer:
            status = answer.status
    except urllib.error.HTTPError as refusal:
        status = refusal.code
        refusal.close()
    assert status in (200, 400)
    assert engine.generate({"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 1}}, deadline_s=30)["output_ids"]
