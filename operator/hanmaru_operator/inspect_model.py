"""`hanmaru model-facts`: reads a checkpoint's `config.json`, from a folder or a hub, and reports the model's facts.

It runs in a small pod beside the source; the operator reads the pod's termination message with `read_report`. The
message is one line of JSON of at most 4,096 bytes: `{"facts": …, "revision": …}` or `{"error": …, "isPermanent": …}`.
What it reads comes from outside: sizes and times are bounded, a token goes to the host it belongs to and nowhere else,
and neither file nor token is ever part of a message. It does not look at weights.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_operator.plan.config_json import MAX_CONFIG_BYTES, read_model
from hanmaru_operator.plan.model import MAX_JSON_BYTES, ModelFacts

STEP_TIMEOUT_S = 10.0
"""For a connection and each read of it."""
TOTAL_TIMEOUT_S = 60.0
"""For the whole of a download: a server that drips bytes is not waited for."""
MAX_REDIRECTS = 5
MAX_ERROR_CHARACTERS = 512
"""JSON writes one character in at most 12 bytes, so the line stays below 4,096 bytes with room for the rest."""
COMMIT_HEADER = "x-repo-commit"
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Report:
    """What a pod found out. Either `facts` or `error`."""

    facts: ModelFacts | None
    revision: str
    """The commit of the checkpoint; empty where a folder or a hub names none."""
    error: str = ""
    is_permanent: bool = False
    """Trying again does not help: the file, the name or the rights are wrong."""

    def line(self) -> str:
        """One line of JSON, at most 4,096 bytes."""
        if self.facts is None:
            found: dict[str, object] = {"error": self.error[:MAX_ERROR_CHARACTERS], "isPermanent": self.is_permanent}
        else:
            found = {"facts": json.loads(self.facts.to_json()), "revision": self.revision}
        text = json.dumps(found, separators=(",", ":"))
        assert len(text) <= MAX_JSON_BYTES, "bounds on every part keep this from happening"
        return text


def read_report(text: str) -> Report:
    """What `Report.line` wrote. Raises HanmaruError (CONFIGURATION) on anything else: a pod can say what it likes."""
    try:
        found = json.loads(text[: MAX_JSON_BYTES + 1])
        if "error" in found:
            return Report(None, "", str(found["error"])[:MAX_ERROR_CHARACTERS], bool(found.get("isPermanent")))
        facts, revision = ModelFacts.from_json(json.dumps(found["facts"])), str(found["revision"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _wrong(f"the pod reported no model facts ({type(error).__name__})") from error
    if revision and not _COMMIT.fullmatch(revision):
        raise _wrong("the pod reported a revision that is no commit hash")
    return Report(facts, revision)


def from_folder(folder: Path) -> Report:
    """Facts of a checkpoint in a folder."""
    return _reported(lambda: Report(read_model(_read_file(folder / "config.json")), ""))


def from_hub(
    endpoint: str, repo: str, revision: str, token: str | None, *, now: Callable[[], float] = time.monotonic
) -> Report:
    """Facts of a checkpoint in a hub that speaks as huggingface.co does."""
    return _reported(lambda: _download(endpoint, repo, revision, token, now() + TOTAL_TIMEOUT_S, now))


def _reported(look: Callable[[], Report]) -> Report:
    try:
        return look()
    except HanmaruError as error:
        return Report(None, "", error.message, is_permanent=error.code is ErrorCode.CONFIGURATION)


def _read_file(file: Path) -> bytes:
    try:
        # A pipe in a volume must not hold the pod for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise _wrong("config.json is not a regular file; expected a checkpoint's configuration")
            return opened.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise _wrong("the source has no config.json; check the claim's or the image's path") from error
    except OSError as error:
        raise _wrong(f"config.json cannot be read: {error.strerror}") from error


def _download(
    endpoint: str, repo: str, revision: str, token: str | None, deadline: float, now: Callable[[], float]
) -> Report:
    if not _REPO.fullmatch(repo) or len(repo) > 200:
        raise _wrong(f"repo={repo[:200]!r} is no owner/name")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise _wrong(f"revision={revision[:200]!r} is no branch, tag or commit")
    url = f"{endpoint.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/config.json"
    body, commit = _follow(url, token, deadline, now)
    if commit is None and _COMMIT.fullmatch(revision):
        commit = revision
    return Report(read_model(body), commit or "")


def _follow(url: str, token: str | None, deadline: float, now: Callable[[], float]) -> tuple[bytes, str | None]:
    """The file, and the commit that any answer on the way named."""
    opener = urllib.request.build_opener(_NoRedirects)
    home, commit = _origin(url), None
    for _ in range(MAX_REDIRECTS + 1):
        _check_scheme(url, token)
        request = urllib.request.Request(url, headers={"User-Agent": "hanmaru", "Accept": "application/json"})  # noqa: S310 # checked above
        if token is not None and _origin(url) == home:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            with opener.open(request, timeout=STEP_TIMEOUT_S) as answer:
                commit = _commit(answer.headers) or commit
                return _read_answer(answer, deadline, now), commit
        except urllib.error.HTTPError as error:
            with error:
                commit = _commit(error.headers) or commit
                url = urljoin(url, _location(error, home, has_token=token is not None))
        except (OSError, HTTPException, ValueError) as error:
            raise _unreachable(f"{home} cannot be read: {_cause(error)}") from error
    raise _wrong(f"{home} redirects more than {MAX_REDIRECTS} times")


def _read_answer(answer: HTTPResponse, deadline: float, now: Callable[[], float]) -> bytes:
    body = b""
    while len(body) <= MAX_CONFIG_BYTES:
        if now() > deadline:
            raise _unreachable(f"config.json took longer than {TOTAL_TIMEOUT_S:.0f} s")
        # `read1` returns what has come; `read` would wait for the whole amount.
        part = answer.read1(1 << 16)
        if not part and answer.length:
            raise _unreachable(f"the answer ended {answer.length} bytes too early")
        if not part:
            return body
        body += part
    raise _wrong(f"config.json has more than {MAX_CONFIG_BYTES} bytes")


def _location(error: urllib.error.HTTPError, home: str, *, has_token: bool) -> str:
    """Where a redirect points; every other status is an end."""
    if error.code in (301, 302, 303, 307, 308) and error.headers.get("Location"):
        return str(error.headers["Location"])
    if error.code in (401, 403):
        how = "the token is not accepted" if has_token else "a token is needed: set tokenSecretRef"
        raise _wrong(f"{home} answered {error.code}: {how}")
    if error.code == 404:
        raise _wrong(f"{home} answered 404: it has no such repository, revision or config.json (or hides it)")
    raise _unreachable(f"{home} answered {error.code}")


def _commit(headers: Message) -> str | None:
    named = str(headers.get(COMMIT_HEADER) or "").strip().lower()
    return named if _COMMIT.fullmatch(named) else None


def _check_scheme(url: str, token: str | None) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _wrong("the hub's address is neither http nor https")
    if token is not None and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise _wrong(f"http://{parts.hostname} would show the token to everyone on the way; use https")


def _origin(url: str) -> str:
    """Scheme, host and port: what a token belongs to, and all of an address that is said."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}"[:200]


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:200]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed one by one above, where the token is taken off."""

    def redirect_request(self, *_arguments: object) -> None:
        """None: the answer comes back as an HTTPError."""


def read_token(file: Path) -> str:
    """A token from a mounted Secret, without the newline that editors leave."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"the token's file cannot be read: {type(error).__name__}") from error
    if not token or not token.isascii() or not token.isprintable() or len(token) > 4096:
        raise _wrong("the token's file is empty or holds no token")
    return token


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)


def _unreachable(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.STORE_UNAVAILABLE, message)
