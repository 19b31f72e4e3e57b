"""One model's tokenizer and chat template: messages or a prompt in, token ids out.

The gateway counts and renders itself, and the engine gets token ids, so what is charged is what is computed. Templates
come from workers, not from callers, and run in jinja2's immutable sandbox all the same. Called by `flow`, in a
thread when the request is long. Leaves out: which fields a caller may send (`admission`), and the engine's side.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.worker import ModelArtifact
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

Message = Mapping[str, object]

_PROBE = "hanmaru-probe"


class Renderer:
    """Immutable after construction; may be used from several threads at once."""

    def __init__(self, artifact: ModelArtifact) -> None:
        """Takes a second or two for a large vocabulary. Raises ValueError when the artifact is not usable."""
        try:
            # Declared as bytes by the library since 0.20; the text form keeps older releases working too.
            self._tokenizer = Tokenizer.from_str(artifact.tokenizer.decode())
            self._template = _environment().from_string(artifact.chat_template)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValueError(f"tokenizer or chat template cannot be loaded: {type(error).__name__}") from error
        self._special_tokens = dict(artifact.special_tokens)
        self.vocabulary_tokens: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        """Token ids are below it."""
        self._takes_parts = self._renders_parts()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[object] | None,
        template_kwargs: Mapping[str, object],
    ) -> list[int]:
        """Token ids of the conversation, with the prompt for the next answer.

        Raises HanmaruError (INVALID_REQUEST) when the template refuses the conversation.
        """
        variables = {
            **self._special_tokens,
            **template_kwargs,
            "messages": [self._plain(message) for message in messages],
            "tools": tools,
            "add_generation_prompt": True,
        }
        try:
            text = self._template.render(variables)
        except _TemplateRefusalError as refusal:
            raise _bad_messages(f"the model's chat template refuses them: {refusal}") from None
        except Exception as error:  # a template is code; whatever it raises is about this conversation
            raise _bad_messages(f"the model's chat template cannot render them ({type(error).__name__})") from None
        return self._encode(text, add_special_tokens=False)

    def prompt(self, prompt: str) -> list[int]:
        """Token ids of a raw prompt, with the special tokens the tokenizer itself adds."""
        return self._encode(prompt, add_special_tokens=True)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise HanmaruError (INVALID_REQUEST) unless every id is in the vocabulary: others crash an engine."""
        for token in ids:
            if not 0 <= token < self.vocabulary_tokens:
                raise HanmaruError(
                    ErrorCode.INVALID_REQUEST,
                    f"prompt holds token id {token}; this model has ids 0 to {self.vocabulary_tokens - 1}",
                    param="prompt",
                )

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # The batch form alone has a variant that skips the offsets, which nobody here reads: a fifth faster.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def _plain(self, message: Message) -> dict[str, object]:
        """The message as templates expect it: no None, text for content, tool-call arguments as objects."""
        plain = {name: value for name, value in message.items() if value is not None}
        content = plain.setdefault("content", "")
        if isinstance(content, list) and not self._takes_parts:
            plain["content"] = "\n".join(str(part.get("text", "")) for part in content)
        calls = plain.get("tool_calls")
        if isinstance(calls, list):
            plain["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        return plain

    def _renders_parts(self) -> bool:
        """Whether the template reads a list of text parts by itself; asked once, by trying."""
        parts = [{"type": "text", "text": _PROBE}]
        try:
            text = self._template.render({**self._special_tokens, "messages": [{"role": "user", "content": parts}]})
        except Exception:  # then it does not
            return False
        return _PROBE in text and "'text'" not in text and '"text"' not in text


class _TemplateRefusalError(jinja2.TemplateError):
    """A template called `raise_exception`."""


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for: the names and whitespace rules transformers gives them."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which models have never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusalError(message)


def _strftime_now(form: str) -> str:
    # Templates put today's date into system prompts; the machine's own zone is what transformers uses.
    return datetime.datetime.now().astimezone().strftime(form)


def _with_parsed_arguments(call: object) -> object:
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except msgspec.DecodeError:
        raise _bad_messages("a tool call's arguments are no JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _bad_messages(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.INVALID_REQUEST, f"messages: {message}", param="messages")
