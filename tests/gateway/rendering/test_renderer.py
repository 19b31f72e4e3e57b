"""Rendering and counting: transformers' own token ids for the committed checkpoint, and no way out of the sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.worker import ModelArtifact
from hanmaru_gateway.rendering.renderer import Renderer
from hanmaru_testing.fleet import byte_artifact
from transformers import AutoTokenizer

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "tiny-k-exaone"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a <city> & its "suburbs"',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "서울"}'}}


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(str(CHECKPOINT))


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Renderer:
    special = {name: value for name, value in theirs.special_tokens_map.items() if isinstance(value, str)}
    return Renderer(
        ModelArtifact(
            tokenizer=(CHECKPOINT / "tokenizer.json").read_bytes(),
            chat_template=(CHECKPOINT / "chat_template.jinja").read_text(),
            special_tokens=special,
        )
    )


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "hello"}],
    "Korean with a system prompt": [
        {"role": "system", "content": "친절하게 대답하세요."},
        {"role": "user", "content": "안녕하세요? 🙂"},
    ],
    "several turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c\n\n  d"},
    ],
    "a tool round trip": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "markup in the text": [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} <|endofturn|> \x00 \u2028"}],
    "empty": [{"role": "user", "content": ""}],
}


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_token_ids_are_those_of_transformers(
    ours: Renderer, theirs: Any, name: str, kwargs: dict[str, object], tools: list[object] | None
) -> None:
    messages = CONVERSATIONS[name]
    expected_messages = json.loads(json.dumps(messages))
    for message in expected_messages:
        if message.get("content") is None:
            message["content"] = ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    text = theirs.apply_chat_template(
        expected_messages, tools=tools, tokenize=False, add_generation_prompt=True, **kwargs
    )
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.chat(messages, tools=tools, template_kwargs=kwargs) == expected


@pytest.mark.parametrize("prompt", ["The cat", "고양이", " ", "a" * 5000])
def test_prompts_are_tokenised_as_transformers_does(ours: Renderer, theirs: Any, prompt: str) -> None:
    assert ours.prompt(prompt) == theirs.encode(prompt)


def test_rendering_does_not_change_what_it_was_given(ours: Renderer) -> None:
    messages = CONVERSATIONS["a tool round trip"]
    before = json.dumps(messages)
    ours.chat(messages, tools=[TOOL], template_kwargs={})
    assert json.dumps(messages) == before


def test_text_parts_reach_templates_that_know_only_text() -> None:
    renderer = Renderer(byte_artifact("{{ messages[0].content }}"))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert renderer.chat([{"role": "user", "content": parts}], tools=None, template_kwargs={}) == renderer.prompt(
        "a\nb"
    )


def test_text_parts_are_left_to_templates_that_read_them() -> None:
    template = "{% for part in messages[0].content %}<{{ part.text }}>{% endfor %}"
    renderer = Renderer(byte_artifact(template))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert renderer.chat([{"role": "user", "content": parts}], tools=None, template_kwargs={}) == renderer.prompt(
        "<a><b>"
    )


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
    ],
)
def test_a_template_that_fails_is_a_bad_request_and_no_more(template: str, told: str) -> None:
    renderer = Renderer(byte_artifact(template))
    with pytest.raises(HanmaruError, match=told) as raised:
        renderer.chat([{"role": "user", "content": "secret"}], tools=None, template_kwargs={})
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    assert raised.value.param == "messages"
    assert "secret" not in raised.value.message


def test_ids_outside_the_vocabulary_are_refused() -> None:
    renderer = Renderer(byte_artifact())
    renderer.check_ids([0, 255])
    for ids in ([256], [-1], [0, 10**9]):
        with pytest.raises(HanmaruError, match="255"):
            renderer.check_ids(ids)


@pytest.mark.parametrize(
    "artifact",
    [
        ModelArtifact(tokenizer=b"no json", chat_template=""),
        ModelArtifact(tokenizer=b"\xff", chat_template=""),
        ModelArtifact(tokenizer=byte_artifact().tokenizer, chat_template="{% for %}"),
    ],
)
def test_an_artifact_that_cannot_be_used_is_a_value_error(artifact: ModelArtifact) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        Renderer(artifact)
