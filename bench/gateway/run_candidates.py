"""Measures the listener candidates of decision 0003 in one interleaved run and prints a Markdown table.

`python bench/gateway/run_candidates.py [--rounds 5] [--seconds 1.5]`.
Development only; the product's benchmark is `run.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from candidates import MODES
from rig import ENGINE_CORE, HERE, PROXY_CORE, Cell, Route, machine, measure_all, started, table, wait_until_serving

FIRST_PORT = 22100
CELLS = [Cell(clients, is_streaming) for clients in (1, 64) for is_streaming in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    args = parser.parse_args()
    engine_url = f"http://127.0.0.1:{FIRST_PORT}"
    seen = machine()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hanmaru-bench-") as folder:
        logs = Path(folder)
        engine = [sys.executable, str(HERE / "fake_engine.py"), "--port", str(FIRST_PORT)]
        stack.enter_context(started(engine, ENGINE_CORE, logs / "engine.log"))
        routes = [Route("direct", engine_url)]
        for index, mode in enumerate(args.modes, start=1):
            port = FIRST_PORT + 40 * index
            argv = [sys.executable, str(HERE / "candidates.py"), mode, "--port", str(port), "--engine", engine_url]
            process = stack.enter_context(started(argv, PROXY_CORE, logs / f"{mode}.log"))
            routes.append(Route(mode, f"http://127.0.0.1:{port}", [process], log_path=logs / f"{mode}.log"))
            # One after the other: HAProxy's manager is killed when its start takes long.
            wait_until_serving(routes[-1])
        samples = measure_all(routes, CELLS, args.rounds, args.seconds)
        print(table(samples, routes, CELLS, "direct"))
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
