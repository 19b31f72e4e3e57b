"""What `hanmaru up` prints when all is ready: where to ask, with which key, how to look and how to end. Pure."""

from __future__ import annotations

from hanmaru_cli.state import Running

_TEXT = """\
Hanmaru is up ({took_s:.0f} s).

  REST   {http_url}/v1        gRPC   {grpc_address}        metrics   {metrics_url}
  model  {route}
  key    {api_key}

  curl {http_url}/v1/chat/completions -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "{route}", "messages": [{{"role": "user", "content": "안녕하세요?"}}], "max_tokens": 64}}'

  from openai import OpenAI
  client = OpenAI(base_url="{http_url}/v1", api_key="{api_key}")
  messages = [{{"role": "user", "content": "안녕하세요?"}}]
  for chunk in client.chat.completions.create(model="{route}", messages=messages, max_tokens=64, stream=True):
      delta = chunk.choices[0].delta
      print(getattr(delta, "reasoning_content", None) or delta.content or "", end="", flush=True)

  logs   {logs}
  end    Ctrl-C here, or `hanmaru down` from anywhere
"""


def render_welcome(running: Running, *, api_key: str, took_s: float) -> str:
    """The text for a person at a terminal."""
    return _TEXT.format(
        took_s=took_s,
        http_url=running.http_url,
        grpc_address=running.grpc_address,
        metrics_url=running.metrics_url,
        route=running.route,
        api_key=api_key,
        logs=running.logs,
    )
