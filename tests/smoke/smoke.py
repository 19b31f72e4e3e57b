"""`make smoke`: tries a running `make up` from another shell, as its users would. Exit status 1 when a check fails."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from hanmaru_cli.state import StateFolder, home
from hanmaru_testing.main_job import run_checks, target_of
from hanmaru_testing.otlp_collector import OtlpCollector


def main() -> int:
    state = StateFolder(home(os.environ))
    running = state.read_running()
    if running is None or not running.lives():
        print("Nothing is running; start it with `make up` in another shell.")
        return 1
    if not running.ready:
        print(f"It is still starting (process {running.pid}); try again when it says that it is up.")
        return 1
    with ExitStack() as stack:
        collector = None
        if running.otlp_endpoint is not None:
            port = urlsplit(running.otlp_endpoint).port
            collector = stack.enter_context(OtlpCollector(grpc_port=port))
        failed = 0
        for outcome in run_checks(target_of(running, state), collector):
            print(outcome, flush=True)
            failed += not outcome.is_ok
    print("All is well." if not failed else f"{failed} failed; logs: {running.logs}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
