"""One question to a gateway by the clients that users have; prints one JSON line. Runs in a pod of the client image.

`python ask.py openai|stream|greedy|grpc|models URL KEY MODEL`. A refusal is an answer: `{"status": 401, "code": …}`.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

DEADLINE_S = 60.0
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True}
MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]
PROMPT = "Who are you? " * 40
"""Longer than a sliding window, for the answer that is compared with the reference's."""
TOKENS = 24


def by_openai(kind: str, url: str, key: str, model: str) -> dict[str, Any]:
    """The `openai` client, without second tries."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=DEADLINE_S)
    try:
        if kind == "models":
            return {"status": 200, "models": sorted(found.id for found in client.models.list())}
        if kind == "greedy":
            told = client.completions.create(
                model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True}
            )
            tokens = told.usage.completion_tokens if told.usage else 0
            return {"status": 200, "prompt": PROMPT, "text": told.choices[0].text, "tokens": tokens}
        asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": TOKENS, "extra_body": NO_THINKING}
        if kind == "openai":
            answer = client.chat.completions.create(**asked)
            text, usage = answer.choices[0].message.content, answer.usage
            return {"status": 200, "text": text, "tokens": usage.completion_tokens if usage else 0}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        tokens = next((chunk.usage.completion_tokens for chunk in reversed(chunks) if chunk.usage), 0)
        return {"status": 200, "text": "".join(pieces), "pieces": len(pieces), "tokens": tokens}
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code}
    except openai.APIConnectionError as error:
        return {"status": 0, "code": f"{type(error).__name__}: {error.__cause__}"}


def by_grpc(url: str, key: str, model: str) -> dict[str, Any]:
    """A stream by our own stubs."""
    import grpc
    from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2 as pb
    from hanmaru_gateway.grpc.generated.hanmaru.v1 import inference_pb2_grpc as pb_grpc

    request = pb.ChatCompletionRequest(
        model=model,
        messages=[pb.ChatMessage(role=each["role"], content=each["content"]) for each in MESSAGES],
        max_completion_tokens=TOKENS,
    )
    request.stream_options.include_usage = True
    request.chat_template_kwargs["enable_thinking"] = False
    metadata = (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(urlsplit(url).netloc) as channel:
        stub = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        try:
            found = list(stub.StreamChatCompletion(request, metadata=metadata, timeout=DEADLINE_S))
        except grpc.RpcError as error:
            return {"status": error.code().name, "code": error.details()}
    text = "".join(choice.delta.content for message in found for choice in message.choices)
    return {"status": 200, "text": text, "pieces": len(found), "tokens": found[-1].usage.completion_tokens}


if __name__ == "__main__":
    kind, url, key, model = sys.argv[1:]
    print(json.dumps(by_grpc(url, key, model) if kind == "grpc" else by_openai(kind, url, key, model)))
