"""Bytes that SGLang's pools hold and allocate for a model of 48 `LLLG` layers, hybrid and full. `run` calls it.

The model is made on the fly with narrow random layers: which layers keep which tokens depends on nothing that was
trained. Slots in use and slots and bytes allocated are the engine's own reports; only the sizes its pools are asked to
have are the planner's. MTP is off.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from hanmaru_checkpoint.model import Model
from hanmaru_checkpoint.shape import Shape
from hanmaru_checkpoint.weights import save_model
from hanmaru_operator.plan.memory import Demand
from hanmaru_testing.engine import Engine, running_engine

GIB = 1 << 30
SHAPE = Shape(
    num_layers=48, vocab_size=512, hidden_size=32, num_heads=1, num_kv_heads=1, head_dim=16,
    dense_size=32, expert_size=16, num_experts=4, experts_per_token=2,
)  # fmt: skip
SLIDING_LAYERS = sum(SHAPE.is_sliding(layer) for layer in range(SHAPE.num_layers))
FULL_LAYERS = SHAPE.num_layers - SLIDING_LAYERS

SEQUENCES = 16
SEQUENCE_TOKENS = 8192
OUTPUT_TOKENS = 160
"""More than SGLang's eviction interval, so that the most a sequence holds is among what is seen."""
LONG_SEQUENCE_TOKENS = 32_768
CHUNK_TOKENS = 2048
SPARE_TOKENS = 128
"""Of the full pool for each sequence: SGLang admits a request only with room for some steps more."""
POLL_S = 0.2
DEADLINE_S = 600.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Allocated:
    """What an engine allocated, by its own report."""

    full_slots: int
    sliding_slots: int
    """0 where all layers share one pool."""
    bytes: float

    def layer_slots(self, full_slots: int, sliding_slots: int) -> int:
        """One slot of a pool is one token in each of the pool's layers."""
        if not self.sliding_slots:
            return full_slots * SHAPE.num_layers
        return full_slots * FULL_LAYERS + sliding_slots * SLIDING_LAYERS

    def held(self, sample: Sample) -> float:
        """Bytes that a sample's slots take, by what these pools took for theirs."""
        whole = self.layer_slots(self.full_slots, self.sliding_slots)
        return self.bytes / whole * self.layer_slots(sample.full_slots, sample.sliding_slots)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a running engine: requests that decode, and slots in use, which cached prefixes are not."""

    running: int
    full_slots: int
    sliding_slots: int


@dataclass(frozen=True, slots=True)
class Found:
    """Everything this part measures; bytes are of the narrow model, so only ratios mean something."""

    held_ratio: float
    """Bytes in use by 16 decoding sequences of 8K tokens, hybrid by full."""
    planned_held_ratio: float
    """The same by the planner's formula."""
    sliding_slots_a_sequence: float
    allocated_ratio: float
    """Pools for 16 sequences of 32K tokens, hybrid by full."""
    planned_allocated_ratio: float
    hybrid_running: int
    """Sequences of 8K tokens that decoded at once in the hybrid pools …"""
    full_running: int
    """… and in a full pool of no fewer bytes."""
    memory_ratio: float
    """Bytes of those pools, hybrid by full: at most 1."""


def measure(logs: Path, say: Say) -> Found:
    """About four minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="hanmaru-bench-") as name:
        checkpoint = random_checkpoint(Path(name))
        hybrid = hybrid_flags(SEQUENCES, SEQUENCE_TOKENS)
        with _engine(checkpoint, hybrid, logs / "kv-hybrid.log") as engine:
            hybrid_pools = allocated(engine)
            say(f"hybrid, 16 x 8K: {hybrid_pools}")
            hybrid_most = most_held(decode(engine, SEQUENCES, say), SEQUENCES)
        with _engine(checkpoint, full_flags(SEQUENCES * pool_tokens(SEQUENCE_TOKENS)), logs / "kv-full.log") as engine:
            full_pools = allocated(engine)
            say(f"full, 16 x 8K: {full_pools}")
            full_most = most_held(decode(engine, SEQUENCES, say), SEQUENCES)
        # The hybrid pools' bytes in slots of the full one, and no fewer.
        same = int(hybrid_pools.bytes / (full_pools.bytes / full_pools.full_slots)) + 1
        with _engine(checkpoint, full_flags(same), logs / "kv-same-bytes.log") as engine:
            same_pools = allocated(engine)
            say(f"full, as many bytes as hybrid: {same_pools}")
            full_running = max(sample.running for sample in decode(engine, SEQUENCES, say, until_all_answered=False))
        with _engine(checkpoint, hybrid_flags(SEQUENCES, LONG_SEQUENCE_TOKENS), logs / "kv-hybrid-32k.log") as engine:
            long_hybrid = allocated(engine)
            say(f"hybrid, 16 x 32K: {long_hybrid}")
        with _engine(checkpoint, full_flags(long_hybrid.full_slots), logs / "kv-full-32k.log") as engine:
            long_full = allocated(engine)
            say(f"full, 16 x 32K: {long_full}")
    return Found(
        held_ratio=hybrid_pools.held(hybrid_most) / full_pools.held(full_most),
        planned_held_ratio=planned_ratio(SEQUENCE_TOKENS, SEQUENCES * demand().request_tokens),
        sliding_slots_a_sequence=hybrid_most.sliding_slots / SEQUENCES,
        allocated_ratio=long_hybrid.bytes / long_full.bytes,
        planned_allocated_ratio=planned_ratio(pool_tokens(LONG_SEQUENCE_TOKENS), demand().tokens(SEQUENCES)),
        hybrid_running=hybrid_most.running,
        full_running=full_running,
        memory_ratio=hybrid_pools.bytes / same_pools.bytes,
    )


def random_checkpoint(folder: Path) -> Path:
    """Weights and configuration; no tokenizer, which nobody asks for."""
    path = folder / "checkpoint"
    path.mkdir()
    torch.manual_seed(1)
    save_model(Model(SHAPE), path)
    return path


def demand() -> Demand:
    """What the planner counts for this engine: nothing kept for prefixes that finished."""
    return Demand(SHAPE.sliding_window, page_size=1, draft_tokens=1, chunk_tokens=CHUNK_TOKENS, kept_tails=0)


def pool_tokens(sequence_tokens: int) -> int:
    """Slots of the full pool for one sequence."""
    return sequence_tokens + SPARE_TOKENS


def planned_ratio(sequence_tokens: int, sliding_tokens: int) -> float:
    """Hybrid by full, from counts of tokens alone."""
    full = SEQUENCES * sequence_tokens
    return (FULL_LAYERS * full + SLIDING_LAYERS * sliding_tokens) / (SHAPE.num_layers * full)


def hybrid_flags(sequences: int, sequence_tokens: int) -> list[str]:
    """Pools as the planner sizes them."""
    full = sequences * pool_tokens(sequence_tokens)
    ratio = (demand().tokens(sequences) + 0.5) / full
    return ["--max-total-tokens", str(full), "--swa-full-tokens-ratio", f"{ratio:.8f}"]


def full_flags(tokens: int) -> list[str]:
    """One pool for all layers."""
    return ["--disable-hybrid-swa-memory", "--max-total-tokens", str(tokens)]


def _engine(checkpoint: Path, flags: Sequence[str], log_path: Path) -> Any:
    common = ["--dtype", "bfloat16", "--skip-tokenizer-init", "--sleep-on-idle", "--enable-metrics"]
    common += ["--page-size", "1", "--chunked-prefill-size", str(CHUNK_TOKENS), "--decode-log-interval", "1"]
    common += ["--context-length", str(LONG_SEQUENCE_TOKENS), "--max-running-requests", str(2 * SEQUENCES)]
    return running_engine(checkpoint, [*common, *flags], log_path=log_path)


def allocated(engine: Engine) -> Allocated:
    """From `/server_info`."""
    memory = json.loads(engine.get("/server_info"))["internal_states"][0]["memory_usage"]
    return Allocated(memory["token_capacity"], memory["token_capacity_swa"] or 0, memory["kvcache"] * GIB)


def decode(engine: Engine, sequences: int, say: Say, *, until_all_answered: bool = True) -> list[Sample]:
    """Send so many different prompts at once and look at the engine while it answers.

    Ends when all are answered or, where they do not fit at once, with the first answer.
    """
    source = Random(7)
    samples: list[Sample] = []
    done = threading.Event()

    def ask() -> None:
        prompt = [source.randrange(64, SHAPE.vocab_size) for _ in range(SEQUENCE_TOKENS - OUTPUT_TOKENS)]
        sampling = {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        try:
            engine.generate({"input_ids": prompt, "sampling_params": sampling}, deadline_s=DEADLINE_S)
        except OSError:
            if not done.is_set():
                raise
        if not until_all_answered:
            done.set()

    begun = time.monotonic()
    with ThreadPoolExecutor(sequences) as pool:
        asked = [pool.submit(ask) for _ in range(sequences)]
        while not done.is_set() and not all(future.done() for future in asked):
            samples.append(look(engine))
            done.wait(POLL_S)
        if done.is_set():
            engine.post("/abort_request", {"abort_all": True})
        for future in asked:
            future.result()
    say(f"  {sequences} sequences sent, {max(sample.running for sample in samples)} at once, "
        f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return samples


def look(engine: Engine) -> Sample:
    """From `/metrics`, which every decode step renews. Raises KeyError with the name that is missing."""
    values = {}
    for line in engine.get("/metrics").splitlines():
        if not line.startswith("#"):
            values[line.partition("{")[0]] = float(line.rsplit(" ", 1)[1])
    names = ("num_running_reqs", "kv_used_tokens", "swa_used_tokens")
    return Sample(*(int(values[f"sglang:{name}"]) for name in names))


def most_held(samples: Sequence[Sample], running: int) -> Sample:
    """The sample with most in use while so many decoded."""
    whole = [sample for sample in samples if sample.running == running]
    if not whole:
        most = max(sample.running for sample in samples)
        raise RuntimeError(f"{running} sequences were to decode at once, at most {most} did; the pools are too small")
    return max(whole, key=lambda sample: (sample.sliding_slots, sample.full_slots))
