"""Facts from a folder or a hub: hostile answers end in one short line, and a token stays where it belongs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_operator.inspect_model import Report, from_folder, from_hub, read_report, read_token
from hanmaru_testing.planning import CONFIGS, model

COMMIT = "a" * 40
PATH = "/LGAI-EXAONE/K/resolve/main/config.json"
TOKEN = "hf_secret"


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: bool = False
    """Send a byte now and then instead of the body."""


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str | None]] = []
        """Paths asked for, with the Authorization header that came."""
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        answer = self.server.answers.get(self.path, Answer(404))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            while answer.drip and not self.server.stopping.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()
            self.wfile.write(answer.body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "*")
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join(10)


def ask(hub: Hub, repo: str = "LGAI-EXAONE/K", revision: str = "main", token: str | None = None) -> Report:
    return from_hub(hub.url, repo, revision, token)


def test_a_folder_gives_its_facts() -> None:
    report = from_folder(CONFIGS["tiny"].parent)
    assert report == Report(model("tiny"), "")
    assert read_report(report.line()) == report


def test_a_hub_gives_facts_and_the_commit(hub: Hub) -> None:
    hub.answers[PATH] = Answer(200, CONFIGS["k-exaone"].read_bytes(), {"X-Repo-Commit": COMMIT})
    report = ask(hub, token=TOKEN)
    assert report == Report(model("k-exaone"), COMMIT)
    assert hub.seen == [(PATH, f"Bearer {TOKEN}")]
    assert len(report.line()) < 4096
    assert read_report(report.line()) == report


def test_a_commit_named_by_a_redirect_counts(hub: Hub) -> None:
    hub.answers[PATH] = Answer(307, b"", {"Location": "/cache/config.json", "X-Repo-Commit": COMMIT})
    hub.answers["/cache/config.json"] = Answer(200, CONFIGS["tiny"].read_bytes())
    assert ask(hub, token=TOKEN).revision == COMMIT
    assert [authorization for _, authorization in hub.seen] == [f"Bearer {TOKEN}"] * 2


def test_a_token_does_not_follow_to_another_host(hub: Hub) -> None:
    other = hub.url.replace("127.0.0.1", "localhost")
    hub.answers[PATH] = Answer(302, b"", {"Location": f"{other}/elsewhere"})
    hub.answers["/elsewhere"] = Answer(200, CONFIGS["tiny"].read_bytes())
    assert ask(hub, token=TOKEN).facts == model("tiny")
    assert hub.seen[1] == ("/elsewhere", None)


@pytest.mark.parametrize("named", ["", "main", "A" * 40 + "!", "../../etc"])
def test_only_a_commit_hash_is_taken_for_one(hub: Hub, named: str) -> None:
    hub.answers[PATH] = Answer(200, CONFIGS["tiny"].read_bytes(), {"X-Repo-Commit": named})
    assert ask(hub).revision == ""


def test_a_commit_that_was_asked_for_is_the_revision(hub: Hub) -> None:
    hub.answers[PATH.replace("main", COMMIT)] = Answer(200, CONFIGS["tiny"].read_bytes())
    assert ask(hub, revision=COMMIT).revision == COMMIT


@pytest.mark.parametrize(
    ("answer", "said", "is_permanent"),
    [
        (Answer(404), "answered 404", True),
        (Answer(401), "a token is needed", True),
        (Answer(403), "a token is needed", True),
        (Answer(500), "answered 500", False),
        (Answer(503), "answered 503", False),
        (Answer(302), "answered 302", False),
        (Answer(302, b"", {"Location": "file:///etc/passwd"}), "neither http nor https", True),
        (Answer(302, b"", {"Location": PATH}), "redirects more than", True),
        (Answer(200, b"not json"), "not JSON", True),
        (Answer(200, b"{}"), "has no", True),
        (Answer(200, b" " * (2 << 20)), "more than 1048576 bytes", True),
        (Answer(200, b"{}", {"Content-Length": "99"}), "97 bytes too early", False),
    ],
)
def test_every_bad_answer_ends_in_one_sentence(hub: Hub, answer: Answer, said: str, is_permanent: bool) -> None:
    hub.answers[PATH] = answer
    report = ask(hub)
    assert report.facts is None
    assert said in report.error
    assert report.is_permanent is is_permanent
    assert len(report.line()) < 4096
    assert read_report(report.line()) == report


def test_a_refused_token_is_told_from_a_missing_one_and_never_shown(hub: Hub) -> None:
    hub.answers[PATH] = Answer(403)
    error = ask(hub, token=TOKEN).error
    assert "the token is not accepted" in error
    assert TOKEN not in error


def test_a_server_that_drips_is_not_waited_for(hub: Hub) -> None:
    hub.answers[PATH] = Answer(200, drip=True)
    clock = iter([0.0, *range(1, 100_000, 25)])
    started = time.monotonic()
    report = from_hub(hub.url, "LGAI-EXAONE/K", "main", None, now=lambda: float(next(clock)))
    assert "took longer than 60 s" in report.error
    assert not report.is_permanent
    assert time.monotonic() - started < 10


def test_a_hub_that_is_not_there_can_be_asked_again(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    report = ask(hub)
    assert "cannot be read" in report.error
    assert not report.is_permanent


@pytest.mark.parametrize(
    ("endpoint", "repo", "revision", "said"),
    [
        ("https://hub", "no-slash", "main", "no owner/name"),
        ("https://hub", "a/b/c", "main", "no owner/name"),
        ("https://hub", "../etc/passwd", "main", "no owner/name"),
        ("https://hub", "a/b", "../../x", "no branch"),
        ("https://hub", "a/b", "a b", "no branch"),
        ("file:///etc", "a/b", "main", "neither http nor https"),
        ("http://hub.example.com", "a/b", "main", "would show the token"),
    ],
)
def test_a_name_that_is_none_is_never_asked_for(endpoint: str, repo: str, revision: str, said: str) -> None:
    report = from_hub(endpoint, repo, revision, TOKEN)
    assert said in report.error
    assert report.is_permanent


def test_a_folder_without_a_configuration_says_so(tmp_path: Path) -> None:
    report = from_folder(tmp_path)
    assert "no config.json" in report.error
    assert report.is_permanent


def test_a_pipe_in_a_volume_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "not a regular file" in from_folder(tmp_path).error


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert from_folder(tmp_path).is_permanent


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 34)
    assert "1048577 bytes" in from_folder(tmp_path).error


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "7", "{}", '{"facts": {}, "revision": ""}', "x" * 9000, "[" * 9000],
)
def test_a_pod_may_say_what_it_likes(text: str) -> None:
    with pytest.raises(HanmaruError, match="no model facts"):
        read_report(text)


def test_a_pods_revision_must_be_a_commit() -> None:
    found = json.loads(Report(model("tiny"), COMMIT).line()) | {"revision": "main; rm -rf"}
    with pytest.raises(HanmaruError, match="no commit hash"):
        read_report(json.dumps(found))


def test_an_error_of_any_length_fits_the_message() -> None:
    line = Report(None, "", "\N{OLD PERSIAN SIGN A}\n" * 9000).line()
    assert len(line) <= 4096
    assert "\n" not in line


@pytest.mark.parametrize(("written", "read"), [("t", "t"), (" t\n", "t")])
def test_a_token_loses_its_newline(tmp_path: Path, written: str, read: str) -> None:
    (tmp_path / "token").write_text(written)
    assert read_token(tmp_path / "token") == read


@pytest.mark.parametrize("written", [b"", b"\n", b"a\nb", b"\xff", b"x" * 5000])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "token").write_bytes(written)
    with pytest.raises(HanmaruError, match="token's file"):
        read_token(tmp_path / "token")
