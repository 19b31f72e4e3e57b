"""Whether a part can do its work yet, asked over its own port. Used by `up` while it starts; decides nothing."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass

from hanmaru_cli.laptop import Part
from hanmaru_cli.ports import LOOPBACK

_DEADLINE_S = 2.0
_BODY_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Seen:
    """What the part answered just now."""

    ready: bool
    stage: str
    """One word or two for people."""


def look(part: Part) -> Seen:
    """Ask the part; whatever goes wrong means that it is not ready yet. Blocks for 2 s at most."""
    try:
        if part.ready_path is None:
            with socket.create_connection((LOOPBACK, part.port), timeout=_DEADLINE_S):
                return Seen(True, "ready")
        status, body = get(part.port, part.ready_path)
    except (OSError, http.client.HTTPException):
        return Seen(False, "starting")
    return Seen(status == 200, "ready" if status == 200 else _stage(body))


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """(status, beginning of the body) of a GET on loopback; no proxy setting has a say."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_DEADLINE_S)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(_BODY_BYTES)
    finally:
        connection.close()


def _stage(body: bytes) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return "starting"
    if isinstance(said, dict) and isinstance(phase := said.get("phase"), str):
        return phase  # a worker's
    if isinstance(said, dict) and isinstance(missing := said.get("missing"), list) and missing:
        return f"waits for {', '.join(map(str, missing))}"  # a gateway's
    return "starting"
