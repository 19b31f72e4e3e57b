"""`make bench-gateway`: our gateway, LiteLLM and SMG before one fake engine, in one interleaved run.

Prints what it was measured on, a table against `direct` (no gateway), ratios to each peer, and one JSON line last.
All of it takes under eight minutes when the peers are installed. `--only` measures fewer routes, for profiling.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path

import peers
from rig import (
    ENGINE_CORE,
    HERE,
    BenchError,
    Cell,
    Route,
    Samples,
    machine,
    measure_all,
    median_added,
    median_ratio,
    started,
    table,
)

CHECKPOINT = HERE.parents[1] / "checkpoints" / "tiny-k-exaone"
CELLS = [Cell(clients, is_streaming) for clients in (1, 16, 64) for is_streaming in (False, True)]
BUSIEST, QUIETEST = Cell(64, False), Cell(1, False)
PEERS = ("litellm", "smg")


def ratios(samples: Samples, measured: list[str]) -> str:
    """A Markdown table: our requests a second divided by each peer's."""
    lines = ["| clients | " + " | ".join(f"vs {peer}" for peer in measured) + " |", "|---|" + "---|" * len(measured)]
    for cell in CELLS:
        values = [f"{median_ratio(samples, 'rps', 'hanmaru', peer, cell):.2f}" for peer in measured]
        lines.append(f"| {cell} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> int:
    # What runs by then is ended on the way out, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="length of one shot")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="whose tokenizer and template are used")
    parser.add_argument("--only", nargs="*", choices=["hanmaru", *PEERS], default=["hanmaru", *PEERS])
    args = parser.parse_args()
    seen = machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hanmaru-bench-")))
        port = peers.free_port()
        engine_url = f"http://127.0.0.1:{port}"
        engine = [sys.executable, str(HERE / "fake_engine.py"), "--port", str(port)]
        stack.enter_context(started(engine, ENGINE_CORE, folder / "engine.log"))
        routes = [Route("direct", engine_url)]
        if "hanmaru" in args.only:
            routes.append(stack.enter_context(peers.hanmaru(engine_url, folder, args.checkpoint)))
        for name, start in (("litellm", peers.litellm), ("smg", peers.smg)):
            if name in args.only:
                routes.append(stack.enter_context(start(engine_url, folder)))
        try:
            samples = measure_all(routes, CELLS, args.rounds, args.seconds)
        except BenchError as error:
            print(f"no result: {error}", file=sys.stderr)
            return 1
    print(json.dumps(seen))
    print(table(samples, routes, CELLS, "direct"))
    summary: dict[str, object] = {}
    if "hanmaru" in args.only:
        measured = [name for name in PEERS if name in args.only]
        if measured:
            print(ratios(samples, measured))
        for name in measured:
            summary[f"vs_{name}_rps"] = round(median_ratio(samples, "rps", "hanmaru", name, BUSIEST), 3)
        summary["added_p50_ms"] = round(median_added(samples, "p50_ms", "hanmaru", "direct", QUIETEST), 3)
    print(json.dumps({**summary, "machine": seen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
