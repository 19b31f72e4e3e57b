"""Somebody has decided about every field of the pinned engine, and what is forwarded is what the engine takes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.admission.allowlist import TABLES, Decision
from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.request import Kind

ENGINE_CLASSES = {Kind.CHAT: "ChatCompletionRequest", Kind.COMPLETION: "CompletionRequest"}
REQUIRED: dict[Kind, dict[str, object]] = {
    Kind.CHAT: {"model": "k", "messages": [{"role": "user", "content": "hi"}]},
    Kind.COMPLETION: {"model": "k", "prompt": "hi"},
}


def _engine_module() -> ast.Module:
    # Read, not imported: the engine's import takes 15 s and warns.
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    return ast.parse((folder / "srt/entrypoints/openai/protocol.py").read_text())


def _fields_read_by(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Declared fields, inherited ones, and keys that the class's validators read without declaring them."""
    node = classes[name]
    names = set[str]()
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            names |= _fields_read_by(base.id, classes)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
    for call in ast.walk(node):
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="values"), attr="get"), args=[ast.Constant(value=str(key)), *_]
            ):
                names.add(key)
    return {field for field in names if not field.startswith("_")}


@pytest.mark.parametrize("kind", Kind)
def test_every_field_of_the_pinned_engine_is_decided_about(kind: Kind) -> None:
    classes = {node.name: node for node in _engine_module().body if isinstance(node, ast.ClassDef)}
    fields = _fields_read_by(ENGINE_CLASSES[kind], classes)
    assert {"model", "cache_salt", "bootstrap_host", "temperature"} <= fields, "the engine's classes moved"
    undecided = fields - {row.name for row in TABLES[kind]}
    assert not undecided, f"decide in allowlist.py what happens to {sorted(undecided)}"


@pytest.mark.parametrize("kind", Kind)
def test_no_field_is_decided_twice(kind: Kind) -> None:
    assert [name for name, times in Counter(row.name for row in TABLES[kind]).items() if times > 1] == []


@pytest.mark.parametrize("kind", Kind)
def test_every_row_can_be_explained(kind: Kind) -> None:
    bounds = {name: getattr(DEFAULT_BOUNDS, name) for name in DEFAULT_BOUNDS.__slots__}
    for row in TABLES[kind]:
        assert "{" not in row.rule.format(**bounds)
        assert row.rule or row.decision is not Decision.REFUSE, f"{row.name} is refused without saying what to do"
        assert (row.type is not None) == (row.decision in (Decision.FORWARD, Decision.READ)), row.name


def _rows(decision: Decision) -> list[tuple[Kind, str]]:
    return [(kind, row.name) for kind in Kind for row in TABLES[kind] if row.decision is decision]


@pytest.mark.parametrize("value", ['"x"', "null", "[]", "1"])
@pytest.mark.parametrize(("kind", "name"), _rows(Decision.GATEWAY))
def test_what_only_the_gateway_may_set_is_refused_by_name(kind: Kind, name: str, value: str) -> None:
    body = json.dumps(REQUIRED[kind])[:-1] + f', "{name}": {value}}}'
    with pytest.raises(HanmaruError, match=name) as caught:
        parse_request(kind, body.encode())
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, name)


@pytest.mark.parametrize(("kind", "name"), _rows(Decision.REFUSE))
def test_what_is_not_offered_is_refused_by_name(kind: Kind, name: str) -> None:
    with pytest.raises(HanmaruError, match=r"is not accepted; .+") as caught:
        parse_request(kind, json.dumps(REQUIRED[kind] | {name: 1}).encode())
    assert caught.value.param == name


@pytest.mark.parametrize(("kind", "name"), _rows(Decision.DROP))
def test_what_is_harmless_is_accepted_and_never_forwarded(kind: Kind, name: str) -> None:
    parsed = parse_request(kind, json.dumps(REQUIRED[kind] | {name: {"any": ["thing"]}}).encode())
    assert name not in parsed.fields


FULL: dict[Kind, dict[str, object]] = {
    kind: {
        "model": "k",
        "temperature": 2,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 1,
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "repetition_penalty": 0.01,
        "seed": -(2**63),
        "n": 8,
        "max_tokens": 100,
        "min_tokens": 0,
        "stop": ["a" * 256] * 16,
        "stop_token_ids": [0] * 64,
        "ignore_eos": True,
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "logit_bias": {str(token): -100 for token in range(300)},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    }
    for kind in Kind
}
FULL[Kind.COMPLETION] |= {"prompt": [1, 2, 3], "logprobs": 20}
FULL[Kind.CHAT] |= {
    "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "u"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
            "refusal": None,
            "audio": None,
            "function_call": None,
            "annotations": [],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "strict": True, "parameters": {"type": "object"}},
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "logprobs": True,
    "top_logprobs": 20,
    "chat_template_kwargs": {"enable_thinking": False, "style": "brief", "level": 1.5, "none": None},
    "reasoning_effort": "high",
    "separate_reasoning": True,
    "stream_reasoning": True,
}

_BUILD = """
import json, sys
from sglang.srt.entrypoints.openai import protocol
for name, fields in json.load(sys.stdin).items():
    request = getattr(protocol, name)(model="k", **fields)
    left = set(fields) - set(type(request).model_fields)
    assert not left, f"{name} does not know {left}"
"""


@pytest.mark.timeout(180)
def test_the_engine_takes_everything_that_is_forwarded() -> None:
    forwarded = {}
    for kind, fields in FULL.items():
        parsed = parse_request(kind, json.dumps(fields).encode())
        rows = {row.name for row in TABLES[kind] if row.decision is Decision.FORWARD}
        assert rows <= set(parsed.fields), "the sample lacks a forwarded field"
        forwarded[ENGINE_CLASSES[kind]] = parsed.fields
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BUILD],
        input=json.dumps(forwarded),
        capture_output=True,
        text=True,
        timeout=170,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
