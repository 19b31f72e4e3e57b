"""What `helm test` runs, asking something that answers as a gateway may: one sentence for whatever is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hanmaru_testing.helm import CHART

ASK = CHART / "files/test/ask.py"
KEY = "hmk_key-of-a-tenant"
MODELS = '{"data": [{"id": "tiny"}]}'
COMPLETION = '{"usage": {"completion_tokens": 8}}'
RUN_S = 30.0
Answers = dict[str, tuple[int, str] | None]
"""By path, status and body; None: the connection ends without a word."""


@pytest.fixture
def answers() -> Answers:
    return {"/ready": (200, ""), "/v1/models": (200, MODELS), "/v1/chat/completions": (200, COMPLETION)}


@pytest.fixture
def address(answers: Answers) -> Iterator[str]:
    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[self.path]
            if answer is None:
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as in its class
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As the pod runs it, with a tenant's key."""
    (folder / "key").write_text(KEY)
    environ = {**os.environ, "HANMARU_TEST_URL": address, "HANMARU_TEST_KEY_FILE": str(folder / "key")}
    # As an argument, not as a file: the pod has it so.
    command = [sys.executable, "-c", ASK.read_text(encoding="utf-8")]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=RUN_S, check=False)


def test_a_gateway_that_completes_passes(address: str, tmp_path: Path) -> None:
    done = ask(address, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the gateway is ready\ntiny completed 8 tokens\n"


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/v1/models", (401, "unknown key"), "/v1/models: HTTP Error 401: Unauthorized unknown key"),
        ("/v1/models", None, "/v1/models: Remote end closed connection"),
        ("/v1/models", (200, '{"data": []}'), "the key may use no model that is served"),
        ("/v1/models", (200, "<html>"), "/v1/models: Expecting value"),
        ("/v1/chat/completions", (503, "no_worker"), "/completions: HTTP Error 503: Service Unavailable no_worker"),
        ("/v1/chat/completions", None, "/v1/chat/completions: Remote end closed connection"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_one_sentence(
    path: str, answer: tuple[int, str] | None, said: str, answers: Answers, address: str, tmp_path: Path
) -> None:
    answers[path] = answer
    done = ask(address, tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert KEY not in done.stderr
