"""Decode throughput with and without MTP, one stream against many, interleaved. `run` calls it.

The engines of a comparison run side by side and are asked in turn, in rotated order; one that is not asked sleeps. A
shot is some rendered prompts that no training has seen, sent together, and the tokens of their answers by the seconds
until the last is there. Ratios are taken within a round, and the median of the rounds counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmaru_testing.engine import Engine, running_engine
from tokenizers import Tokenizer

SOURCE_ROOTS = ("serving", "platform")
ROUNDS = 5
OUTPUT_TOKENS = 96
"""As many as `checkpoints/training` measured the drafts with."""
DRAFTED_TOKENS = 3
PLAIN, MTP, BEFORE = "plain", "mtp", "before"
FLAGS: Mapping[str, Sequence[str]] = {
    PLAIN: (),
    BEFORE: (),
    MTP: (
        "--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(DRAFTED_TOKENS),
        "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(DRAFTED_TOKENS + 1),
    ),
}  # fmt: skip
COMMON = (
    "--dtype", "bfloat16", "--skip-tokenizer-init", "--sleep-on-idle", "--disable-radix-cache",
    "--context-length", "2048", "--max-total-tokens", "16384", "--max-running-requests", "16",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shot:
    """One batch of answers."""

    tokens_per_s: float
    tokens_per_step: float
    """Over all answers, the bonus token included; 1 without MTP."""


@dataclass(slots=True)
class Samples:
    """Shots of one checkpoint, by engine and batch size; one of each in every round."""

    shots: dict[tuple[str, int], list[Shot]] = field(default_factory=dict)

    def tokens_per_s(self, engine: str, batch: int) -> float:
        """Median over the rounds."""
        return statistics.median(shot.tokens_per_s for shot in self.shots[engine, batch])

    def tokens_per_step(self, engine: str, batch: int) -> float:
        """Median over the rounds."""
        return statistics.median(shot.tokens_per_step for shot in self.shots[engine, batch])

    def ratios(self, ours: tuple[str, int], base: tuple[str, int]) -> list[float]:
        """Of tokens a second, within each round; the smallest first."""
        pairs = zip(self.shots[ours], self.shots[base], strict=True)
        return sorted(one.tokens_per_s / other.tokens_per_s for one, other in pairs)

    def ratio(self, ours: tuple[str, int], base: tuple[str, int]) -> float:
        """Median of the rounds' own."""
        return statistics.median(self.ratios(ours, base))


def measure(
    checkpoint: Path,
    prompts: Sequence[str],
    batches: Mapping[str, Sequence[int]],
    logs: Path,
    say: Say,
    *,
    before: Path | None = None,
) -> Samples:
    """`batches` names the engines to start, and with which batch sizes each is asked.

    `before` holds the sources that the engine of that name runs with instead of this checkout's.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in prompts]
    samples = Samples()
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in batches:
            flags = [*COMMON, *FLAGS[name]]
            log_path = logs / f"{checkpoint.name}-{name}.log"
            own = python_path(before) if name == BEFORE and before else None
            engines[name] = stack.enter_context(running_engine(checkpoint, flags, log_path=log_path, environment=own))
            say(f"{checkpoint.name}, {name}: ready after {engines[name].ready_s:.0f} s")
        cells = [(name, batch) for name, sizes in batches.items() for batch in sizes]
        for cell in cells:
            shoot(engines[cell[0]], cell[1], ids)
        for number in range(ROUNDS):
            for cell in rotated(cells, number):
                samples.shots.setdefault(cell, []).append(shoot(engines[cell[0]], cell[1], ids))
            say(f"{checkpoint.name}: round {number + 1} of {ROUNDS}")
    return samples


def python_path(sources: Path) -> dict[str, str]:
    """The environment in which those are found before the installed ones."""
    return {"PYTHONPATH": os.pathsep.join(str(sources / root) for root in SOURCE_ROOTS)}


def unpack(commit: str, root: Path, folder: Path) -> Path | None:
    """That commit's sources of the engine's plugin, below `folder`; None where git does not know it."""
    command = ["git", "-C", str(root), "archive", "--format=tar", commit, *SOURCE_ROOTS]
    found = subprocess.run(command, capture_output=True, check=False)
    if found.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def rotated(cells: Sequence[tuple[str, int]], number: int) -> list[tuple[str, int]]:
    """So that no cell is always the first of its round."""
    start = number % len(cells)
    return [*cells[start:], *cells[:start]]


def shoot(engine: Engine, batch: int, prompts: Sequence[Sequence[int]]) -> Shot:
    """A single stream answers four prompts one after the other, a batch as many as it is wide at once."""
    turns = [prompts[i : i + 1] for i in range(4)] if batch == 1 else [prompts[:batch]]
    tokens, steps, seconds = 0, 0, 0.0
    for turn in turns:
        sampling = {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        begun = time.monotonic()
        answers: list[dict[str, Any]] = engine.generate({"input_ids": turn, "sampling_params": sampling})
        seconds += time.monotonic() - begun
        for answer in answers:
            made = int(answer["meta_info"]["completion_tokens"])
            tokens += made
            steps += int(answer["meta_info"].get("spec_verify_ct") or made)
    return Shot(tokens / seconds, tokens / steps)
