"""`make test-engine-full`: every combination of an engine's switches over many random prompts, against transformers.

The same prompts, engines and judgement as `tests/worker/plugin/test_engine_matrix.py`, which covers pairs. One line of
JSON for each combination goes into `--results` as soon as it is judged, so that a run that was ended goes on where it
stopped; lines of another setting or of other sources of the worker do not count. Exit status 1 for a wrong answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hanmaru_cli.state import home

from hanmaru_testing.engine import running_engine
from hanmaru_testing.engine_matrix import (
    ALL,
    OUTPUT_TOKENS,
    Switches,
    ask_all,
    judge,
    random_prompts,
    to_environment,
    to_flags,
)
from hanmaru_testing.reference import TIE_LOGITS, Reference

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "checkpoints" / "tiny-k-exaone"
TIES_PER_TOKEN = 1 / 300
"""More greedy divergences than this, though each is excused, are no chance."""


def main() -> int:
    """Judge what is left to judge; 0 when every combination is right."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the engine ends as well
    options = _options()
    names = options.only or [str(switches) for switches in ALL]
    setting = {
        "sources": _sources(),
        "checkpoint": options.checkpoint.name,
        "prompts": options.prompts,
        "seed": options.seed,
    }
    done = {} if options.anew else read_results(options.results, setting)
    todo = [switches for switches in ALL if str(switches) in names and str(switches) not in done]
    print(f"{len(names)} combinations of {options.prompts} prompts, {len(names) - len(todo)} judged before", flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if todo:
        torch.set_num_threads(1)
        reference = Reference(options.checkpoint)
        for number, switches in enumerate(todo, 1):
            line = {**setting, **_run(options, switches, reference)}
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{number}/{len(todo)} {told(line)}", flush=True)
            done[str(switches)] = line
    return _summarize([done[name] for name in names])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=200, help="of each combination (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=29, help="of the prompts (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="NAME",
        choices=[str(switches) for switches in ALL],
        help="such as hybrid+mtp, plain",
    )
    parser.add_argument(
        "--results", type=Path, default=home(os.environ) / "engine-full.jsonl", help="(default: %(default)s)"
    )
    parser.add_argument("--anew", action="store_true", help="judge all again, whatever the results say")
    options: argparse.Namespace = parser.parse_args()
    return options


def _sources() -> str:
    """A digest of what runs in the engine besides SGLang."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "serving" / "hanmaru_worker").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(options: argparse.Namespace, switches: Switches, reference: Reference) -> dict[str, Any]:
    prompts = random_prompts(options.prompts, reference.vocabulary, seed=options.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hanmaru-engine-") as folder:
        log_path = Path(folder) / "engine.log"
        flags, environment = to_flags(switches), to_environment(switches)
        with running_engine(options.checkpoint, flags, log_path=log_path, environment=environment) as engine:
            answers = ask_all(engine, prompts)
    outcome = judge(reference, prompts, answers)
    return {
        "combination": str(switches),
        "wrong": outcome.wrong,
        "ties": outcome.ties,
        "error": outcome.worst_error,
        "cached_tokens": sum(outcome.cached_tokens),
        "seconds": round(time.monotonic() - begun),
    }


def read_results(path: Path, setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Judged combinations of the same setting, by name; the last line of each counts."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["combination"]: line for line in lines if setting.items() <= line.items()}


def told(line: dict[str, Any]) -> str:
    """One combination's result as a line."""
    result = f"{len(line['wrong'])} WRONG" if line["wrong"] else "right"
    return (
        f"{line['combination']}: {result}, error {line['error']:.1e}, {line['ties']} ties,"
        f" {line['cached_tokens']} tokens cached, {line['seconds']} s"
    )


def _summarize(lines: Sequence[dict[str, Any]]) -> int:
    tokens = sum(line["prompts"] for line in lines) * OUTPUT_TOKENS
    wrong = [f"{line['combination']}: {answer}" for line in lines for answer in line["wrong"]]
    ties = sum(line["ties"] for line in lines)
    print(f"\n{len(lines)} combinations, {tokens} greedy tokens: {len(wrong)} wrong answers,")
    print(f"  {ties} divergences excused because the reference's two best logits are within {TIE_LOGITS:g},")
    print(f"  largest difference of a log-probability {max(line['error'] for line in lines):.1e}")
    for line in wrong:
        print(f"  {line}", file=sys.stderr)
    if ties > tokens * TIES_PER_TOKEN:
        print(f"  too many ties: at most {tokens * TIES_PER_TOKEN:.0f} were expected", file=sys.stderr)
    return int(bool(wrong) or ties > tokens * TIES_PER_TOKEN)


if __name__ == "__main__":
    raise SystemExit(main())
