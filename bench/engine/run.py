"""`make bench-engine`: what the CPU engine's memory and speed are worth, each against the engine without it.

Prints what it was measured on, what was seen, and one JSON line last. Exit status 1 when a bar was missed, each with
its number. The parts are `--only kv`, `--only speed` and `--only prefix`; all take seven minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import decoding
import kv_bytes
import prefix_hits
from bars import missed
from decoding import BEFORE, MTP, PLAIN, Samples
from hanmaru_cli.state import home
from hanmaru_testing.machine import machine

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "tiny-k-exaone"
PROMPTS = ROOT / "checkpoints" / "evidence" / "held-out-prompts.json"
DEEPER_LAYERS = 16
BEFORE_COMMIT = "6f75bf8"
"""The last one in which experts and sequences were computed one after the other."""
PARTS = ("kv", "speed", "prefix")
SMALL, MANY, MOST = 1, 8, 16


def main() -> int:
    # What runs by then is ended on the way out, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--deeper", type=Path, default=deeper_checkpoint(), help="a deeper trained checkpoint")
    parser.add_argument("--logs", type=Path, help="folder that keeps the engines' logs")
    args = parser.parse_args()
    seen = machine()
    print(json.dumps(seen))
    say = _clock()
    summary: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        logs = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hanmaru-bench-")))
        logs.mkdir(parents=True, exist_ok=True)
        if "kv" in args.only:
            summary |= _kv(logs, say)
        if "speed" in args.only:
            summary |= _speed(args.deeper, logs, say)
        if "prefix" in args.only:
            summary |= _prefix(logs, say)
    failures = missed(summary)
    for failure in failures:
        print(f"bar missed: {failure}", file=sys.stderr)
    print(json.dumps({**summary, "missed": failures, "machine": seen}))
    return int(bool(failures))


def _kv(logs: Path, say: Callable[[str], None]) -> dict[str, float]:
    found = kv_bytes.measure(logs, say)
    print("48 layers of LLLG, hybrid by full KV, from the engines' own pools (the planner's formula in brackets)")
    print(f"  held by 16 decoding sequences of 8K: {found.held_ratio:.3f} ({found.planned_held_ratio:.3f}),")
    print(f"    with at most {found.sliding_slots_a_sequence:.0f} sliding tokens each")
    print(f"  allocated for 16 of 32K: {found.allocated_ratio:.3f} ({found.planned_allocated_ratio:.3f})")
    print(f"  sequences of 8K decoding at once: {found.hybrid_running} by {found.full_running},")
    print(f"    in {found.memory_ratio:.3f} of the other's bytes")
    return {
        "kv_bytes_ratio": round(found.held_ratio, 4),
        "kv_allocated_ratio": round(found.allocated_ratio, 4),
        "concurrent_8k_ratio": round(found.hybrid_running / found.full_running, 2),
    }


def _speed(deeper: Path, logs: Path, say: Callable[[str], None]) -> dict[str, float]:
    prompts: list[str] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    both = {PLAIN: (SMALL, MANY), MTP: (SMALL, MANY)}
    wider = {**both, PLAIN: (SMALL, MANY, MOST), BEFORE: (SMALL, MANY, MOST)}
    with tempfile.TemporaryDirectory(prefix="hanmaru-bench-") as folder:
        before = decoding.unpack(BEFORE_COMMIT, ROOT, Path(folder))
        if before is None:
            print(f"git has no commit {BEFORE_COMMIT} here, so nothing is compared with it")
            del wider[BEFORE]
        tiny = decoding.measure(TINY, prompts, wider, logs, say, before=before)
    summary = _told("tiny", tiny)
    if before is not None:
        summary |= _told_before(tiny)
    summary |= {
        "batch1_tokens_per_s": round(tiny.tokens_per_s(PLAIN, SMALL), 1),
        "batch16_tokens_per_s": round(tiny.tokens_per_s(PLAIN, MOST), 1),
        "batch16_speedup": round(tiny.ratio((PLAIN, MOST), (PLAIN, SMALL)), 2),
    }
    print(f"  plain, batch {MOST}: {summary['batch16_tokens_per_s']:.0f} token/s, batch 1 multiplied by")
    print(f"    {_spread(tiny, (PLAIN, MOST), (PLAIN, SMALL))}")
    if deeper.is_dir():
        summary |= _told("deeper", decoding.measure(deeper, prompts, both, logs, say))
    else:
        print(f"no deeper checkpoint in {deeper}: `make checkpoint LAYERS={DEEPER_LAYERS}` makes one")
    for batch in (SMALL, MANY):
        # The tiny model's step is mostly Python, whose share a deeper model hides: the better of the two counts.
        of_each = [value for name, value in summary.items() if name.endswith(f"_mtp_speedup_b{batch}")]
        summary[f"mtp_speedup_b{batch}"] = max(of_each)
    return summary


def _told(name: str, samples: Samples) -> dict[str, float]:
    """Prints one checkpoint's speeds; the summary's entries of it."""
    print(f"{name} checkpoint, {decoding.DRAFTED_TOKENS} drafts a step, {decoding.OUTPUT_TOKENS} tokens an answer")
    summary = {}
    for batch in (SMALL, MANY):
        speed = {engine: samples.tokens_per_s(engine, batch) for engine in (PLAIN, MTP)}
        ratio, steps = samples.ratio((MTP, batch), (PLAIN, batch)), samples.tokens_per_step(MTP, batch)
        print(f"  batch {batch}: {speed[PLAIN]:.0f} token/s without MTP, {speed[MTP]:.0f} with, "
              f"at {steps:.2f} tokens a step;")  # fmt: skip
        print(f"    multiplied by {_spread(samples, (MTP, batch), (PLAIN, batch))}")
        # What a step with drafts costs, in plain steps: the tokens it brings by the speed-up they give.
        print(f"    a step with drafts takes {steps / ratio:.2f} plain ones")
        summary[f"{name}_mtp_speedup_b{batch}"] = round(ratio, 3)
        summary[f"{name}_tokens_per_step_b{batch}"] = round(steps, 3)
    return summary


def _told_before(samples: Samples) -> dict[str, float]:
    print(f"against the engine of commit {BEFORE_COMMIT}, without MTP")
    summary = {}
    for batch in (SMALL, MANY, MOST):
        ours, base = (PLAIN, batch), (BEFORE, batch)
        print(
            f"  batch {batch}: {samples.tokens_per_s(*base):.0f} token/s then, {samples.tokens_per_s(*ours):.0f} now;"
        )
        print(f"    multiplied by {_spread(samples, ours, base)}")
        summary[f"before_speedup_b{batch}"] = round(samples.ratio(ours, base), 3)
    return summary


def _spread(samples: Samples, ours: tuple[str, int], base: tuple[str, int]) -> str:
    ratios = samples.ratios(ours, base)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)"


def _prefix(logs: Path, say: Callable[[str], None]) -> dict[str, float]:
    found = prefix_hits.measure(TINY, logs, say)
    print(f"prefix cache: {found.hits} answers after {found.evicted_tokens} evicted tokens found their prefix again,")
    print(f"  log-probabilities within {found.error:.1e} of those without cache, {found.other_texts} other texts")
    return {
        "prefix_hits": found.hits,
        "prefix_evicted_tokens": found.evicted_tokens,
        "prefix_error": found.error,
        "prefix_other_texts": found.other_texts,
    }


def deeper_checkpoint() -> Path:
    """Where `make checkpoint LAYERS=16` writes."""
    return home(os.environ) / "checkpoints" / f"layers-{DEEPER_LAYERS}"


def _clock() -> Callable[[str], None]:
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {words}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
