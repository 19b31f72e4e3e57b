"""`make bench-engine-gpu-ops`: our pools, indices, attention and MTP logic where there are only torch and transformers.

Four questions, one JSON line last: do log-probabilities agree with transformers on the CPU; are drafted answers the
plain greedy ones; what do two pools take against one; how long is a decode step with either, and with as many sequences
as fit in the same memory. Exit status 1 when an answer is wrong, 2 when the device is not there. `--device cpu` tries
all of it on small sizes. No SGLang and no project environment: `python bench/engine_gpu/ops.py` is enough.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "serving"), str(Path(__file__).parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import decode_timing as timing  # noqa: E402 - after the path
import torch  # noqa: E402
import transformers  # noqa: E402
from agreement import LARGEST, MEAN_BFLOAT16, Case, compare, make_pools, texts  # noqa: E402
from chain_loop import Answer, answer, sampling_deviation  # noqa: E402
from pooled_model import POOLED, PooledModel, Reference  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from two_pools import Shape  # noqa: E402

NO_DEVICE = 2
DRAFTS = 3
ENOUGH_TOKENS_PER_STEP = 2
"""Of the committed checkpoint, which was made to draft 3 and more."""
TIE = 1e-4
"""Two best log-probabilities closer than this may be chosen in either order."""


DEVIATIONS = 5
"""One run in 50,000 has a larger one among its 32 by chance."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is run."""

    case: Case
    prompts: int
    answer_tokens: int
    sampled_chains: int
    stack: timing.Stack
    points: tuple[timing.Point, ...]
    steps: int
    rounds: int


USUAL = Sizes(
    Case(lengths=(1, 5, 127, 128, 129, 300, 700, 1500), chunk=256, decoded=8),
    prompts=16,
    answer_tokens=64,
    sampled_chains=1_000_000,
    stack=timing.Stack(),
    points=(
        *(timing.Point(context, batch) for context in (8192, 32_768) for batch in (1, 8, 16)),
        timing.Point(131_072, 1),
        timing.Point(131_072, 4),
    ),
    steps=20,
    rounds=3,
)
QUICK = Sizes(
    Case(lengths=(1, 60, 129, 200), chunk=96, decoded=4),
    prompts=3,
    answer_tokens=12,
    sampled_chains=50_000,
    stack=timing.Stack(layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16),
    points=(timing.Point(8192, 1), timing.Point(2048, 8)),
    steps=3,
    rounds=2,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="sizes for seconds on a CPU; their times mean nothing")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "tiny-k-exaone")
    args = parser.parse_args()
    missing = missing_device(args.device)
    if missing:
        print(missing, file=sys.stderr)
        return NO_DEVICE
    device = torch.device(args.device)
    if args.device == "cpu":
        torch.set_num_threads(1)  # small sizes on shared cores: more threads only wait for each other
    transformers.logging.disable_progress_bar()
    sizes = QUICK if args.quick or args.device == "cpu" else USUAL
    seen = machine(device)
    print("on", ", ".join(f"{name} {value}" for name, value in seen.items()), flush=True)
    summary = {**agree(args.checkpoint, device, sizes), **measure(device, sizes)}
    print(json.dumps({**summary, "machine": seen}))
    return 0 if summary["is_right"] else 1


def missing_device(kind: str) -> str | None:
    """What to say where the device is not there."""
    if kind == "cpu" or torch.cuda.is_available():
        return None
    return (
        f"no GPU: torch {torch.__version__} sees no CUDA device here; expected one with at least 40 GB."
        ' Run this on a machine with an NVIDIA GPU, or add --device cpu (ARGS="--device cpu") to try it on small sizes'
    )


@torch.inference_mode()
def agree(checkpoint: Path, device: torch.device, sizes: Sizes) -> dict[str, object]:
    """Errors of log-probabilities, and drafted answers against plain ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers', about a generation configuration
        reference = Reference(checkpoint)
        exact = PooledModel(checkpoint, device, torch.float32)
        short = PooledModel(checkpoint, device, torch.bfloat16)
    waves = texts(reference, sizes.case, exact.config.vocab_size, seed=6)
    errors = {
        "hybrid float32": compare(exact, waves, sizes.case, two_pools=True),
        "full float32": compare(exact, waves, sizes.case, two_pools=False),
        "hybrid bfloat16": compare(short, waves, sizes.case, two_pools=True),
        "a window of 129": compare(exact, waves, sizes.case, two_pools=False, extra_keys=1),
    }
    for name, found in errors.items():
        print(f"error of log-probabilities, {name}: largest {found.largest:.1e}, mean {found.mean:.1e}", flush=True)
    drafted = draft(checkpoint, exact, reference, sizes)
    deviation = sampling_deviation(device, sizes.sampled_chains)
    print(
        f"{sizes.sampled_chains} sampled chains: at most {deviation:.1f} standard deviations from the target",
        flush=True,
    )
    is_right = (
        max(errors["hybrid float32"].largest, errors["full float32"].largest) <= LARGEST
        and errors["hybrid bfloat16"].mean <= MEAN_BFLOAT16
        # Else the comparison sees nothing.
        and errors["a window of 129"].largest > LARGEST
        and drafted["divergences"] == 0
        # Greedy text is right whatever is drafted; drafts that are never right are wrong.
        and drafted["tokens_per_step"] > ENOUGH_TOKENS_PER_STEP
        and deviation < DEVIATIONS
    )
    told = {name: {"largest": round(found.largest, 7), "mean": round(found.mean, 7)} for name, found in errors.items()}
    return {"is_right": is_right, "logprob_errors": told, "mtp": {**drafted, "sampling_deviation": round(deviation, 2)}}


def draft(checkpoint: Path, model: PooledModel, reference: Reference, sizes: Sizes) -> dict[str, float]:
    """Answers with three drafts a step and with none, over both kinds of pools."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    told = json.loads((ROOT / "checkpoints" / "evidence" / "held-out-prompts.json").read_text(encoding="utf-8"))
    prompts = [tokenizer.encode(text).ids for text in told[: sizes.prompts]]
    lengths = [len(prompt) + sizes.answer_tokens + DRAFTS + 1 for prompt in prompts]

    def run(drafts: int, *, two_pools: bool) -> list[Answer]:
        pools = make_pools(model, lengths, chunk=max(map(len, prompts)), two_pools=two_pools, drafts=drafts)
        return answer(model, pools, prompts, sizes.answer_tokens, drafts)

    plain = run(0, two_pools=False)
    ties = divergences = 0
    for found in (run(DRAFTS, two_pools=True), drafted := run(DRAFTS, two_pools=False)):
        for ours, theirs in zip(found, plain, strict=True):
            both = zip(ours.tokens, theirs.tokens, strict=False)
            place = next((index for index, (one, other) in enumerate(both) if one != other), None)
            if place is not None:
                best = reference.log_probabilities(theirs.tokens[:place])[-1].topk(2).values
                is_tie = float(best[0] - best[1]) < TIE
                ties, divergences = ties + is_tie, divergences + (not is_tie)
    made = sum(len(each.tokens) - each.prompt_tokens - 1 for each in drafted)
    tokens_per_step = made / sum(each.steps for each in drafted)
    print(f"{len(prompts)} answers, drafted against plain: {divergences} diverge, {ties} at ties", end="; ")
    print(f"{tokens_per_step:.2f} tokens a step with {DRAFTS} drafts", flush=True)
    return {"divergences": divergences, "ties": ties, "tokens_per_step": round(tokens_per_step, 2)}


def measure(device: torch.device, sizes: Sizes) -> dict[str, object]:
    """Bytes of the pools and times of decode steps, both ways in turn within each round."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    stack = sizes.stack
    shape = stack.shape(dtype, device)
    layers = timing.make_layers(stack, dtype, device, POOLED)
    print(
        f"{stack.layers} attention layers LLLG, hidden {stack.hidden}, {stack.heads} heads, {stack.kv_heads} KV heads"
    )
    print("| context | batch | pools, hybrid / full GB | step ms, hybrid / full | ratio | sequences in full's memory |")
    print("|---|---|---|---|---|---|")
    return {"decode": [_point(layers, shape, point, sizes) for point in sizes.points]}


def _point(layers: timing.Layers, shape: Shape, point: timing.Point, sizes: Sizes) -> dict[str, object]:
    taken = {way: timing.pool_bytes(shape, point, way) for way in timing.WAYS}
    most = timing.batch_in(shape, point.context, min(taken["full"], room_bytes(shape.device)))
    crowd = timing.Point(point.context, most)
    runs = {"hybrid": (point, "hybrid"), "full": (point, "full")}
    if most:
        runs["crowd"] = (crowd, "hybrid")
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(sizes.rounds):
        order = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in order:
            took = _step_ms(layers, shape, *runs[name], sizes)
            if took is not None:
                rounds[name].append(took)
    times = {
        name: statistics.median(values) if len(values) == sizes.rounds else None for name, values in rounds.items()
    }
    pairs = list(zip(rounds["hybrid"], rounds["full"], strict=False)) if times["full"] and times["hybrid"] else []
    ratio = statistics.median(hybrid / full for hybrid, full in pairs) if pairs else None
    both = f"{_shown(times['hybrid'])} / {_shown(times['full'])} | {_shown(ratio)}"
    memory = f"{taken['hybrid'] / 1e9:.2f} / {taken['full'] / 1e9:.2f}"
    print(f"| {point.context} | {point.batch} | {memory} | {both} | {most}: {_shown(times.get('crowd'))} |", flush=True)
    return {
        "context": point.context,
        "batch": point.batch,
        "kv_bytes_ratio": round(taken["hybrid"] / taken["full"], 4),
        "step_ms": {name: value and round(value, 3) for name, value in times.items()},
        "step_ratio": ratio and round(ratio, 3),
        "sequences_in_same_memory": most,
    }


def room_bytes(device: torch.device) -> int:
    """What pools may take of the device's free memory; a fifth is left for gathered keys. No limit on a CPU."""
    return int(torch.cuda.mem_get_info(device)[0] * 0.8) if device.type == "cuda" else sys.maxsize


def _step_ms(layers: timing.Layers, shape: Shape, point: timing.Point, way: str, sizes: Sizes) -> float | None:
    """None where the device has no room for it."""
    try:
        return statistics.median(timing.step_ms(layers, shape, point, way, sizes.steps, sizes.stack.hidden))
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        if shape.device.type == "cuda":
            torch.cuda.empty_cache()


def _shown(value: float | None) -> str:
    return "does not fit" if value is None else f"{value:.3f}"


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers were taken on."""
    versions = {name: _version(name) for name in ("torch", "triton", "transformers")}
    seen: dict[str, object] = {"python": platform.python_version(), **versions, "cores": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        seen |= {"gpu": facts.name, "gpu_gb": round(facts.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    return {**seen, "load_1min": round(os.getloadavg()[0], 2)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
