"""Trains the main model on packed documents, with the MTP block's first step beside it.

Training both together makes hidden states tell more than the next token, which drafting lives on (`mtp.py` then trains
the block alone on the model's own answers). Budget and schedule are counted in tokens, never in time, so that a run
repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own customary name

from hanmaru_checkpoint.corpus import Page
from hanmaru_checkpoint.model import Model
from hanmaru_checkpoint.optimizer import Optimizer
from hanmaru_checkpoint.progress import Progress
from hanmaru_checkpoint.tokens import THINK_ID
from hanmaru_checkpoint.turns import documents

MTP_WEIGHT = 0.3
IGNORED = -100
"""What `cross_entropy` counts as no target."""
BALANCE_RATE = 0.001
"""How far an expert's correction bias moves a step, against the sign of its excess load; no loss term balances."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is trained and how fast."""

    num_tokens: int = 1_300_000
    tokens_per_step: int = 2048
    matrix_rate: float = 0.02
    other_rate: float = 0.006
    long_after: float = 0.8
    """Fraction of the steps after which sequences are `long_tokens` long instead of `short_tokens`."""
    short_tokens: int = 256
    long_tokens: int = 1024

    @property
    def num_steps(self) -> int:
        """Steps that spend `num_tokens`."""
        return self.num_tokens // self.tokens_per_step

    def sequence_tokens(self, step: int) -> int:
        """Tokens a sequence has in this step."""
        return self.long_tokens if step >= self.long_after * self.num_steps else self.short_tokens

    def rate(self, step: int) -> float:
        """Share of the full learning rate: a short warm-up, then straight down to almost nothing."""
        return min((step + 1) / 20, 1.0) * max(1.0 - step / self.num_steps, 0.02)


def token_stream(pages: Sequence[Page], tokenizer: Tokenizer, random: Random) -> Iterator[int]:
    """Endless: pass after pass over the pages, every pass drawn anew."""
    while True:
        for document in documents(pages, random):
            yield from tokenizer.encode(document).ids


def train_main(model: Model, stream: Iterator[int], plan: Plan) -> None:
    """Trains all of `model` in place."""
    optimizer = Optimizer(model.named_parameters(), matrix_rate=plan.matrix_rate, other_rate=plan.other_rate)
    progress = Progress("model", plan.num_steps)
    for step in range(plan.num_steps):
        length = plan.sequence_tokens(step)
        ids = take(stream, plan.tokens_per_step // length, length + 1)
        main, mtp = losses(model, ids)
        (main + MTP_WEIGHT * mtp).backward()  # type: ignore[no-untyped-call]
        optimizer.step(plan.rate(step))
        balance_experts(model)
        progress.report(step + 1, f"loss {main.item():.3f}, two ahead {mtp.item():.3f}")


def take(stream: Iterator[int], rows: int, columns: int) -> Tensor:
    """The next `rows * columns` tokens."""
    return torch.tensor([next(stream) for _ in range(rows * columns)]).view(rows, columns)


def losses(model: Model, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(loss of the next token, loss of the MTP block's first draft)."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    hidden = model.hidden(inputs)
    wanted = without_empty_thoughts(ids)
    main = F.cross_entropy(model.logits(hidden).flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    # Half of the rows are enough to shape the hidden states. The last position has no token two ahead; it is computed
    # and left out, so that lengths stay whole blocks.
    half = slice(0, max(1, ids.shape[0] // 2))
    drafted = model.mtp(model.embed(targets[half]), hidden[half], torch.arange(inputs.shape[1]), None)[:, :-1]
    mtp = F.cross_entropy(model.logits(drafted).flatten(0, 1), wanted[half, 1:].flatten(), ignore_index=IGNORED)
    return main, mtp


def without_empty_thoughts(ids: Tensor) -> Tensor:
    """The targets of `ids`, without the second line feed after `<think>`, which makes a thought empty.

    Empty thoughts stand in the prompt when thinking is off; a model that learned to write them would never think.
    """
    targets = ids[:, 1:].clone()
    is_empty = (ids[:, :-2] == THINK_ID) & (ids[:, 1:-1] == ids[:, 2:])
    targets[:, 1:][is_empty] = IGNORED
    return targets


@torch.no_grad()
def balance_experts(model: Model) -> None:
    """Makes experts that got more than their share a little less likely to be chosen."""
    for block in model.sparse_blocks():
        load = block.load.float()
        block.bias.add_(torch.sign(load.mean() - load), alpha=BALANCE_RATE)
