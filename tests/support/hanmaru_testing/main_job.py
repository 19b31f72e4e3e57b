"""What a user does with a running `hanmaru up`, as checks: `make smoke` runs them against a running one, and
`tests/smoke/test_main_job.py` against one of its own.

A check takes a `Target`, returns what it saw in a few words, and raises when it saw something else. The clients are the
ones users have: `openai`, gRPC stubs, and a stock OTLP collector as the receiver of traces.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import openai
from hanmaru_cli import laptop
from hanmaru_cli.state import Running, StateFolder
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2_grpc as pb_grpc

from hanmaru_testing.otlp_collector import OtlpCollector

REQUEST_DEADLINE_S = 60.0
TRACE_DEADLINE_S = 90.0
"""Exporters that found no receiver for a while try again only now and then."""
SPEED_TOKENS = 240
LEAST_TOKENS_PER_S = 40.0

NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Seoul", "Busan"]},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}

TOOLS: Any = [WEATHER_TOOL]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask, and with which keys."""

    http_url: str
    grpc_address: str
    route: str
    demo_key: str = field(repr=False)
    limited_key: str = field(repr=False)

    @contextmanager
    def client(self, key: str | None = None) -> Iterator[openai.OpenAI]:
        """The `openai` client, without second tries, and without a proxy between it and loopback."""
        http = openai.DefaultHttpxClient(trust_env=False)
        client = openai.OpenAI(
            base_url=f"{self.http_url}/v1",
            api_key=key or self.demo_key,
            max_retries=0,
            timeout=REQUEST_DEADLINE_S,
            http_client=http,
        )
        with client:
            yield client


def target_of(running: Running, state: StateFolder) -> Target:
    """The running copy that keeps its state there."""

    def key(tenant: str) -> str:
        return (state.root / laptop.key_file(tenant)).read_text().strip()

    return Target(running.http_url, running.grpc_address, running.route, key(laptop.DEMO), key(laptop.LIMITED))


def _user(text: str) -> Any:
    # Any: the client's own types are unions of fifty members.
    return [{"role": "user", "content": text}]


def list_models(target: Target) -> str:
    with target.client() as client:
        routes = [model.id for model in client.models.list()]
    assert routes == [target.route], f"listed {routes}"
    return ", ".join(routes)


def chat(target: Target) -> str:
    with target.client() as client:
        answer = client.chat.completions.create(
            model=target.route, messages=_user("Who are you?"), max_tokens=48, extra_body=NO_THINKING
        )
    choice = answer.choices[0]
    assert choice.message.content, f"no content in {answer}"
    assert choice.finish_reason in ("stop", "length"), choice.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    return f"{answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens"


def stream_chat(target: Target) -> str:
    """Also says how fast: one stream must reach the bar."""
    with target.client() as client:
        started = time.monotonic()
        stream = client.chat.completions.create(
            model=target.route,
            messages=_user("Tell me a long story."),
            max_tokens=SPEED_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, **NO_THINKING},
        )
        arrivals, tokens = [], 0
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                arrivals.append(time.monotonic())
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    assert len(arrivals) > 10, f"{len(arrivals)} pieces: not a stream"
    assert tokens == SPEED_TOKENS, f"{tokens} tokens"
    tokens_per_s = (tokens - 1) / (arrivals[-1] - arrivals[0])
    words = f"first token after {(arrivals[0] - started) * 1000:.0f} ms, then {tokens_per_s:.0f} tokens/s"
    assert tokens_per_s >= LEAST_TOKENS_PER_S, f"{words}; the bar is {LEAST_TOKENS_PER_S:.0f}"
    return words


def think(target: Target) -> str:
    with target.client() as client:
        answer = client.chat.completions.create(
            model=target.route, messages=_user("What is a light?"), max_tokens=64, temperature=0
        )
    reasoning = getattr(answer.choices[0].message, "reasoning_content", None)
    assert reasoning, f"no reasoning_content in {answer}"
    return f"{len(reasoning)} characters of reasoning, apart from the answer"


def call_a_tool(target: Target) -> str:
    """Arguments are bound by a grammar, so that even a tiny model's fit the schema; its answer closes the round."""
    messages = _user("What is the weather in Seoul?")
    with target.client() as client:
        asked = client.chat.completions.create(
            model=target.route,
            messages=messages,
            tools=TOOLS,
            tool_choice="required",
            max_tokens=256,
            extra_body=NO_THINKING,
        )
        message = asked.choices[0].message
        assert message.tool_calls, f"no tool call in {asked}"
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "get_weather", call.function.name
        arguments = json.loads(call.function.arguments)
        properties = WEATHER_TOOL["function"]["parameters"]["properties"]
        assert arguments.keys() == properties.keys(), arguments
        assert all(arguments[name] in rule["enum"] for name, rule in properties.items()), arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear", "degrees": 21}'}
        conversation: Any = [*messages, message.model_dump(exclude_none=True), result]
        answered = client.chat.completions.create(
            model=target.route,
            messages=conversation,
            tools=TOOLS,
            tool_choice="none",
            max_tokens=48,
            extra_body=NO_THINKING,
        )
    assert answered.choices[0].message.content, f"no answer in {answered}"
    return f"get_weather({call.function.arguments}), then an answer"


def speak_korean(target: Target) -> str:
    """What comes in pieces is what comes at once, and no character is cut in two."""
    request: Any = {
        "model": target.route,
        "messages": _user("안녕하세요"),
        "max_tokens": 96,
        "temperature": 0,
        "extra_body": NO_THINKING,
    }
    with target.client() as client:
        whole = client.chat.completions.create(**request).choices[0].message.content or ""
        stream = client.chat.completions.create(**request, stream=True)
        pieces = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert pieces == whole, f"in pieces {pieces!r}, at once {whole!r}"
    hangul = sum("가" <= letter <= "힣" for letter in whole)
    assert hangul, f"no Korean letter in {whole!r}"
    assert "\ufffd" not in whole, f"a broken character in {whole!r}"
    return f"{hangul} Korean letters"


def stream_by_grpc(target: Target) -> str:
    request = pb.ChatCompletionRequest(
        model=target.route, messages=[pb.ChatMessage(role="user", content="Hello?")], max_completion_tokens=48
    )
    request.stream_options.include_usage = True
    request.chat_template_kwargs["enable_thinking"] = False
    metadata = (("authorization", f"Bearer {target.demo_key}"),)
    with grpc.insecure_channel(target.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        models = stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=REQUEST_DEADLINE_S).models
        assert [model.id for model in models] == [target.route], models
        messages = list(stub.StreamChatCompletion(request, metadata=metadata, timeout=REQUEST_DEADLINE_S))
    text = "".join(choice.delta.content for message in messages for choice in message.choices)
    assert text, f"no text in {len(messages)} messages"
    tokens = messages[-1].usage.completion_tokens
    assert tokens, "no usage at the end"
    return f"{tokens} tokens in {len(messages)} messages"


def be_refused_without_a_key(target: Target) -> str:
    with target.client("hmk_" + "x" * 43) as client:
        try:
            client.chat.completions.create(model=target.route, messages=_user("Hello?"), max_tokens=1)
        except openai.AuthenticationError as error:
            refusal = error
        else:
            raise AssertionError("an unknown key was let in")
    assert refusal.code == "invalid_api_key", refusal.code
    return f"{refusal.status_code} {refusal.code}"


def be_limited(target: Target) -> str:
    with target.client(target.limited_key) as client:
        try:
            for _ in range(laptop.LIMITED_REQUESTS_PER_MINUTE + 2):
                client.chat.completions.create(model=target.route, messages=_user("Hello?"), max_tokens=1)
        except openai.RateLimitError as error:
            refusal = error
        else:
            raise AssertionError(f"more than {laptop.LIMITED_REQUESTS_PER_MINUTE} requests a minute were let in")
    wait_s = int(refusal.response.headers["retry-after"])
    assert 1 <= wait_s <= 60, wait_s
    return f"{refusal.status_code} {refusal.code}, again in {wait_s} s"


def trace_a_request(target: Target, collector: OtlpCollector) -> str:
    """One trace, begun by the client, that holds the gateway's spans and the engine's below them."""
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    with target.client() as client:
        client.chat.completions.create(
            model=target.route,
            messages=_user("Hello?"),
            max_tokens=8,
            extra_headers={"traceparent": f"00-{trace_id}-{parent_id}-01"},
        )
    wanted = {"auth", "tokenise", "admission", "route", "dispatch"}
    deadline = time.monotonic() + TRACE_DEADLINE_S
    while True:
        spans = [span for span in collector.spans() if span.trace_id == trace_id]
        gateway = [span for span in spans if span.service == "hanmaru-gateway"]
        engine = [span for span in spans if span.service != "hanmaru-gateway"]
        names = {span.name.split()[0] for span in gateway}
        ids = {span.span_id for span in spans}
        joined = [span for span in engine if span.parent_id in {span.span_id for span in gateway}]
        if wanted <= names and joined and all(span.parent_id in ids | {parent_id} for span in spans):
            return f"{len(gateway)} spans of the gateway, {len(engine)} of the engine"
        seen = sorted(f"{span.service}: {span.name}" for span in spans)
        assert time.monotonic() < deadline, f"not the whole trace within {TRACE_DEADLINE_S:.0f} s, only {seen}"
        time.sleep(0.25)


CHECKS: dict[str, Callable[[Target], str]] = {
    "the key's models": list_models,
    "chat, openai client": chat,
    "chat in a stream": stream_chat,
    "reasoning": think,
    "a tool call and its answer": call_a_tool,
    "Korean": speak_korean,
    "gRPC stream": stream_by_grpc,
    "unknown key": be_refused_without_a_key,
    "over a limit": be_limited,
}
"""In the order they run; the trace's comes last and needs a collector besides."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check that has run."""

    name: str
    took_s: float
    words: str
    is_ok: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.is_ok else 'FAIL'} {self.took_s:6.2f} s  {self.name}: {self.words}"


def run_checks(target: Target, collector: OtlpCollector | None) -> Iterator[Outcome]:
    """Every check, whatever the ones before it saw. Without a collector the trace's check fails."""

    def trace(target: Target) -> str:
        assert collector is not None, "it was started without --otlp-endpoint"
        return trace_a_request(target, collector)

    for name, check in {**CHECKS, "one trace": trace}.items():
        started = time.monotonic()
        try:
            words, is_ok = check(target), True
        except Exception as error:
            words, is_ok = f"{type(error).__name__}: {error}", False
        yield Outcome(name, time.monotonic() - started, words, is_ok)
