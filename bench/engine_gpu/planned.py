"""The command lines that `served.py` runs: the planner's engine spec for a pool, changed only by what is compared. Pure
but for reading the files it is given.

The flags are the worker's own, `hanmaru_worker.argv`, so that what is measured is what a pool of A100s would start. A
machine with fewer GPUs than the plan takes the same flags with a smaller tensor group and, without a checkpoint, random
weights in K-EXAONE's widths, depth and active experts: only the number of experts is smaller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmaru_cli import plan
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, KvCache, Parallelism
from hanmaru_worker.argv import to_argv
from hanmaru_worker.settings import GroupRank

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "operator" / "examples"
POOL = EXAMPLES / "k-exaone-a100-80g.yaml"
MODEL = EXAMPLES / "models" / "k-exaone-236b.json"
FP8_MODEL = EXAMPLES / "models" / "k-exaone-236b-fp8.json"
FP8_SOURCE = "LGAI-EXAONE/K-EXAONE-236B-A23B-FP8"
DEPLOYMENT = "k-exaone"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Variant:
    """One engine of the comparison."""

    name: str
    hybrid: bool = True
    mtp: bool = True
    attention_backend: str | None = None
    """None: what the plugin picks for the device (`fa3` on an A100)."""


VARIANTS = (
    Variant("planned"),
    Variant("planned, no MTP", mtp=False),
    Variant("full KV", hybrid=False),
    Variant("full KV, no MTP", hybrid=False, mtp=False),
    Variant("fa3", attention_backend="fa3"),
    Variant("triton", attention_backend="triton"),
)
"""The first is an A100 pool's own line on an A100, and on any other device that device's best."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the plan's engine has to make do with."""

    gpus: int
    checkpoint: str
    has_random_weights: bool
    port: int
    keys_file: Path
    device: Device = Device.CUDA


def planned_spec() -> EngineSpec:
    """What `hanmaru plan` makes of the A100 80 GB pool and K-EXAONE in bf16."""
    configs = {"": MODEL, FP8_SOURCE: FP8_MODEL}
    *lines, _status = plan.run([POOL], configs, tokens=8192, output="json")
    specs = [EngineSpec.model_validate(each) for each in json.loads(str(lines[0]))]
    return next(spec for spec in specs if spec.model.name == DEPLOYMENT)


def fitted(spec: EngineSpec, machine: Machine) -> EngineSpec:
    """The same spec for the machine at hand: fewer devices, another checkpoint; everything else as planned."""
    changes: dict[str, Any] = {"checkpoint": machine.checkpoint, "device": machine.device}
    if machine.gpus != spec.parallelism.ranks:
        changes["parallelism"] = Parallelism(tensor=machine.gpus)
    if machine.has_random_weights:
        # There is no tokenizer, which parsers need.
        changes |= {"reasoning_parser": None, "tool_call_parser": None}
    return spec.model_copy(update=changes)


def command(spec: EngineSpec, variant: Variant, machine: Machine) -> tuple[str, ...]:
    """One engine's command line."""
    cache = KvCache.model_validate(spec.kv_cache.model_dump() | {"hybrid": variant.hybrid})
    extra = list(spec.extra_args)
    if variant.attention_backend is not None:
        extra += ["--attention-backend", variant.attention_backend]
    if machine.has_random_weights:
        extra.append("--skip-tokenizer-init")
    changed = spec.model_copy(
        update={
            "kv_cache": cache,
            "draft_tokens": spec.draft_tokens if variant.mtp else None,
            "extra_args": tuple(extra),
        }
    )
    found = to_argv(changed, GroupRank(), host=HOST, port=machine.port, config_file=machine.keys_file)
    return tuple(_with_random_weights(found)) if machine.has_random_weights else found


def _with_random_weights(argv: Sequence[str]) -> Iterable[str]:
    """The worker refuses every format but safetensors, and there is no file to read."""
    place = argv.index("--load-format") + 1
    return (*argv[:place], "dummy", *argv[place + 1 :])


def random_shape(layers: int, experts: int) -> dict[str, Any]:
    """`config.json` with K-EXAONE's widths and so many layers and experts.

    Eight experts are all active, as eight of 128 are in the real model: a token costs what it really costs, 48 layers
    take about 48 GB instead of 474. A batch wakes fewer experts than it really would.
    """
    config: dict[str, Any] = json.loads(MODEL.read_text(encoding="utf-8"))
    if not 4 <= layers <= config["num_hidden_layers"] or layers % 4:
        raise ValueError(f"layers={layers} is not a multiple of 4 up to {config['num_hidden_layers']}")
    by_layer = {name: config[name][:layers] for name in ("layer_types", "is_moe_layer")}
    few = {"num_hidden_layers": layers, "num_experts": experts}
    return {**config, **by_layer, **few, "num_experts_per_tok": min(experts, config["num_experts_per_tok"])}
