"""Asks a gateway again and again, in streams and whole, until told to stop; prints one JSON summary. Runs in a pod.

`python load.py URL KEY MODEL [--callers N] [--tokens N]`: it ends when its standard input does, after the answers that
are under way. Only the standard library: it runs wherever a Python is, and takes little from the machine it measures.
Half of the callers keep their connection, as client libraries do, the others connect anew for each request. Nothing is
tried twice: each answer that is not whole is a failed request.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REQUEST_DEADLINE_S = 60.0
PAUSE_S = 0.3
"""Between two requests of a caller."""


@dataclass
class Seen:
    """What all callers saw."""

    requests: int = 0
    streams: int = 0
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    longest_gap_s: float = 0.0
    """Between two answers that ended well, over all callers."""
    last_s: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, took_s: float, failure: str | None, *, is_stream: bool) -> None:
        """One request ended."""
        with self.lock:
            self.requests += 1
            self.streams += is_stream
            self.longest_s = max(self.longest_s, took_s)
            if failure is not None:
                self.failures.append(f"{time.strftime('%H:%M:%S', time.gmtime())} after {took_s:.1f} s: {failure}")
                return
            now_s = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
            self.last_s = now_s

    def summary(self) -> dict[str, object]:
        """For the test."""
        return {
            "requests": self.requests,
            "streams": self.streams,
            "failed": len(self.failures),
            "failures": self.failures[:20],
            "longestSeconds": round(self.longest_s, 2),
            "longestGapSeconds": round(self.longest_gap_s, 2),
        }


class Caller(threading.Thread):
    """One client after another request."""

    def __init__(self, options: argparse.Namespace, number: int, seen: Seen, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._options, self._seen, self._ended = options, seen, ended
        self._keeps = number % 2 == 0
        self._number = number
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        """Until told to end."""
        turn = self._number
        while not self._ended.wait(PAUSE_S):
            is_stream = turn % 4 != 0
            began_s = time.monotonic()
            try:
                failure = self._ask(is_stream)
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = f"{type(error).__name__}: {error}"
            if failure is not None or not self._keeps:
                self._close()
            self._seen.note(time.monotonic() - began_s, failure, is_stream=is_stream)
            turn += 1

    def _ask(self, is_stream: bool) -> str | None:
        """None when the answer was whole."""
        options = self._options
        body = {
            "model": options.model,
            "prompt": f"A story about the number {time.monotonic_ns()}: ",
            "max_tokens": options.tokens,
            "ignore_eos": True,
            "stream": is_stream,
        }
        if self._connection is None:
            url = urlsplit(options.url)
            self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=REQUEST_DEADLINE_S)
        headers = {"Authorization": f"Bearer {options.key}", "Content-Type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            return f"{answer.status} {text[:300]!r}"
        if not is_stream:
            return None if json.loads(text)["choices"] else "no choices"
        events = [line.removeprefix(b"data: ") for line in text.split(b"\n") if line.startswith(b"data: ")]
        if not events or events[-1] != b"[DONE]":
            return f"a stream of {len(events)} events that ends with {events[-1:]!r}"
        wrong = [event for event in events[:-1] if b'"error"' in event]
        return f"an error in a stream: {wrong[0]!r}" if wrong else None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main() -> int:
    """Callers at work until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("model")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    seen, ended = Seen(), threading.Event()
    callers = [Caller(options, number, seen, ended) for number in range(options.callers)]
    for caller in callers:
        caller.start()
    print("asking", flush=True)
    sys.stdin.read()
    ended.set()
    for caller in callers:
        caller.join(REQUEST_DEADLINE_S)
    print(json.dumps(seen.summary()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
