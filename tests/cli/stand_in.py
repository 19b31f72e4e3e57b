"""A program that stands in for a part: answers /ready, and misbehaves as it is told."""

from __future__ import annotations

import argparse
import http.server
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _end(*_: int | FrameType | None) -> None:
    print("asked to end", flush=True)
    sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--fail", action="store_true", help="say why and end with 3")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--daemon", action="store_true", help="leave a process in a session of its own")
    parser.add_argument("--journal", type=Path, help="append a line a start, and one an orderly end")
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    print(f"started {options.name}", flush=True)
    if options.fail:
        print("the reason why", flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.stubborn else _end)
    if options.daemon:
        command = [
            sys.executable,
            "-c",
            "import time, setproctitle; setproctitle.setproctitle('x' * 999); time.sleep(99)",
        ]
        subprocess.Popen(command, start_new_session=True)
    if options.journal:
        _write(options.journal, f"start {options.name} {os.getpid()}")
    try:
        if options.port:
            http.server.HTTPServer(("127.0.0.1", options.port), _Answers).serve_forever()
        else:
            time.sleep(99)
    finally:
        if options.journal:
            _write(options.journal, f"end {options.name}")


def _write(journal: Path, line: str) -> None:
    with journal.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
