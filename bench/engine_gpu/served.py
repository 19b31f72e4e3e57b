"""`make bench-engine-gpu`: SGLang with the flags planned for a pool of A100s, in our CUDA image on a machine with GPUs.

Each variant is an engine of its own, started and ended in turn, since one fills the GPU: hybrid KV against full, MTP on
and off, `fa3` and `triton` by name, and what the plugin picks for the device. Prompts are random tokens, sent once
before they are timed, so that decoding is what is timed. Prints the machine, a table and one JSON line; exit status 2
where there is no GPU or no plugin, 1 when an engine did not start.

`--print-commands` shows the command lines and starts nothing; it needs no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from typing import Any

from hanmaru_contracts.wire.engine_spec import EngineSpec
from hanmaru_worker.argv import to_environment
from hanmaru_worker.settings import GroupRank
from planned import HOST, VARIANTS, Machine, Variant, command, fitted, planned_spec, random_shape
from readings import Measured, Shot, ratios, read_pools, read_shot, table_rows

NOT_THERE = 2
START_DEADLINE_S = 1800.0
ANSWER_DEADLINE_S = 600.0
STOP_DEADLINE_S = 60.0
LOG_TAIL_CHARACTERS = 4000
VOCABULARY = 3000
"""Prompts use tokens below this: every checkpoint of the family has them."""


def main() -> int:
    # What runs by then is ended on the way out, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = _arguments()
    spec = planned_spec()
    chosen = [variant for variant in VARIANTS if not args.only or variant.name in args.only]
    if args.print_commands:
        machine = Machine(spec.parallelism.ranks, args.checkpoint or spec.checkpoint, False, 30000, Path("KEYS_FILE"))
        for variant in chosen:
            print(f"# {variant.name}\n{shlex.join(command(fitted(spec, machine), variant, machine))}")
        return 0
    gpus = gpu_names()
    missing = missing_part(gpus)
    if missing:
        print(f"{missing}. To see what would be started: --print-commands", file=sys.stderr)
        return NOT_THERE
    print(f"on {len(gpus)} x {gpus[0]}, flags planned for {spec.pool}", flush=True)
    with tempfile.TemporaryDirectory(prefix="hanmaru-bench-") as name:
        results = _measure(spec, chosen, len(gpus), args, Path(name))
    print(
        json.dumps(
            {
                **ratios(results),
                "variants": [each.summary for each in results],
                "machine": {"gpus": len(gpus), "gpu": gpus[0]},
            }
        )
    )
    return int(len(results) < len(chosen))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="any exaone_moe folder; without it K-EXAONE's widths at random")
    parser.add_argument("--layers", type=int, default=48, help="of the random shape")
    parser.add_argument("--experts", type=int, default=8, help="of the random shape")
    parser.add_argument("--only", action="append", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--batches", default="1,8,16")
    parser.add_argument("--prompt-tokens", type=int, default=8000)
    parser.add_argument("--output-tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logs", type=Path, help="folder that keeps the engines' logs")
    parser.add_argument("--print-commands", action="store_true")
    return parser.parse_args()


def gpu_names() -> list[str]:
    """As the driver's tool lists them."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return [line.strip() for line in told.stdout.splitlines() if line.strip()] if told.returncode == 0 else []


def missing_part(gpus: Sequence[str]) -> str | None:
    """What to say where this cannot run."""
    if not gpus:
        return (
            "no GPU: nvidia-smi lists none here; expected at least one NVIDIA GPU of 80 GB. Run this on such a machine"
        )
    if "hanmaru" not in {found.name for found in entry_points(group="sglang.srt.plugins")}:
        return (
            "no plugin: this Python has no distribution `hanmaru`, so SGLang would serve without it and hold full KV;"
            " run this in the image worker-cuda, or install this checkout beside SGLang (pip install --no-deps -e .)"
        )
    return None


def _measure(
    spec: EngineSpec, variants: Sequence[Variant], gpus: int, args: argparse.Namespace, folder: Path
) -> list[Measured]:
    keys = {"api-key": secrets.token_hex(16), "admin-api-key": secrets.token_hex(16)}
    keys_file = folder / "keys.yaml"
    keys_file.touch(mode=0o600)
    keys_file.write_text(json.dumps(keys))
    checkpoint = args.checkpoint or _random_checkpoint(folder, args.layers, args.experts)
    logs = args.logs or folder
    logs.mkdir(parents=True, exist_ok=True)
    batches = [int(size) for size in args.batches.split(",")]
    results: list[Measured] = []
    print(*table_rows(None), sep="\n", flush=True)
    for number, variant in enumerate(variants):
        machine = Machine(gpus, checkpoint, args.checkpoint is None, _free_port(), keys_file)
        own = fitted(spec, machine)
        log = logs / f"engine-{number}.log"
        with _engine(own, variant, machine, folder, log) as is_ready:
            if not is_ready:
                last = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
                print(f"{variant.name} did not start; its log ends with\n{last}", file=sys.stderr, flush=True)
                continue
            url = f"http://{HOST}:{machine.port}"
            pools = read_pools(_ask(f"{url}/server_info", keys["admin-api-key"]))
            shots = {size: _shoot(url, keys["api-key"], size, args) for size in batches}
        results.append(Measured(variant.name, pools, shots))
        print(*table_rows(results[-1]), sep="\n", flush=True)
    return results


def _random_checkpoint(folder: Path, layers: int, experts: int) -> str:
    place = folder / "random"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(random_shape(layers, experts)))
    return str(place)


def _shoot(url: str, key: str, batch: int, args: argparse.Namespace) -> list[Shot]:
    """A fresh batch of prompts each round, once for the cache and once for the clock."""
    chance = Random(batch)
    shots = []
    for _ in range(args.rounds):
        prompts = [[chance.randrange(64, VOCABULARY) for _ in range(args.prompt_tokens)] for _ in range(batch)]
        _generate(url, key, prompts, 1)
        begun = time.perf_counter()
        answers = _generate(url, key, prompts, args.output_tokens)
        shots.append(read_shot(answers, time.perf_counter() - begun))
    return shots


@contextlib.contextmanager
def _engine(spec: EngineSpec, variant: Variant, machine: Machine, folder: Path, log: Path) -> Iterator[bool]:
    """Whether it generated a token in time; no process of its group outlives the block."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    environment = to_environment(
        spec,
        GroupRank(),
        host=HOST,
        scratch=scratch,
        cpus=sorted(os.sched_getaffinity(0)),
        inherited=os.environ,
    )
    with log.open("wb") as out:
        server = subprocess.Popen(
            command(spec, variant, machine),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield _wait(server, machine)
    finally:
        _stop(server)


def _wait(server: subprocess.Popen[bytes], machine: Machine) -> bool:
    key = json.loads(machine.keys_file.read_text())["api-key"]
    deadline = time.monotonic() + START_DEADLINE_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _generate(f"http://{HOST}:{machine.port}", key, [[1]], 1)
            return True
        time.sleep(2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(STOP_DEADLINE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(STOP_DEADLINE_S)


def _generate(url: str, key: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[dict[str, Any]]:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": [list(prompt) for prompt in prompts], "sampling_params": sampling}
    found: list[dict[str, Any]] = _ask(f"{url}/generate", key, body)
    return found


def _ask(url: str, key: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=ANSWER_DEADLINE_S) as answer:
        return json.loads(answer.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
