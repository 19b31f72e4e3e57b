"""Whether a model over our pools says what transformers says: prompts in chunks, then token by token, under pressure.

`ops.py` calls it. Sequences are random tokens of mixed lengths, read by the reference once each. Here they go through
the pools in two waves, the second in slots that the first gave back; slots in nobody's hands read as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from pooled_model import PooledModel, Reference
from two_pools import Pass, Pools, Request, next_pass, sliding_slots_needed

LARGEST = 1e-3
"""Of the errors of log-probabilities in float32, for kernels that sum in another order. A CPU showed 6e-6, and 2 with a
window one token too wide (2026-11-23)."""
MEAN_BFLOAT16 = 0.1
"""Eight bits move single ones by more than 1, random tokens being what no model expects; the mean was 0.03 on a CPU."""


@dataclass(frozen=True, slots=True)
class Case:
    """How the sequences go through the pools."""

    lengths: tuple[int, ...]
    """Tokens of each sequence of a wave."""
    chunk: int
    """Tokens of one sequence in one pass of its prefill."""
    decoded: int
    """Tokens at each sequence's end that come one by one."""
    waves: int = 2


@dataclass(frozen=True, slots=True)
class Errors:
    """Of log-probabilities, over all positions: of the token that came and of the one that was likeliest."""

    largest: float
    """Infinite where one is NaN."""
    mean: float


@dataclass(frozen=True, slots=True)
class Text:
    """One sequence and what the reference says of it."""

    tokens: list[int]
    expected: torch.Tensor
    """float32 [tokens, vocabulary], log-probabilities of what follows each."""


def texts(reference: Reference, case: Case, vocabulary: int, seed: int) -> list[list[Text]]:
    """One list a wave."""
    chance = Random(seed)
    waves = []
    for _ in range(case.waves):
        ids = [[chance.randrange(vocabulary) for _ in range(length)] for length in case.lengths]
        waves.append([Text(each, reference.log_probabilities(each)) for each in ids])
    return waves


def compare(
    model: PooledModel, waves: Sequence[Sequence[Text]], case: Case, *, two_pools: bool, extra_keys: int = 0
) -> Errors:
    """Every position of every sequence. `extra_keys` widens the sliding layers' view: the counter-example."""
    pools = make_pools(model, case.lengths, chunk=case.chunk, two_pools=two_pools)
    found = []
    for wave in waves:
        requests = [Request(row) for row in range(len(wave))]
        for counts in _schedule(case):
            active = [index for index, count in enumerate(counts) if count]
            current = next_pass(pools, [requests[i] for i in active], [counts[i] for i in active])
            current.keys_before += extra_keys
            found.append(_errors(model, current, [wave[i] for i in active]).flatten())
        for request in requests:
            pools.cut(request, 0)
    errors = torch.cat(found).nan_to_num(nan=math.inf)
    return Errors(float(errors.max()), float(errors.mean()))


def make_pools(
    model: PooledModel,
    lengths: Sequence[int],
    *,
    chunk: int,
    two_pools: bool,
    drafts: int = 0,
) -> Pools:
    """Just large enough for sequences that grow to `lengths`."""
    shape = model.shape(revisited_tokens=drafts + 1 if drafts else 0)
    needed = sliding_slots_needed(
        shape.window, len(lengths), verified_tokens=drafts + 1, chunk_tokens=chunk * len(lengths)
    )
    return Pools(
        shape,
        full_slots=sum(lengths) + len(lengths) * (drafts + 1),
        sliding_slots=needed if two_pools else None,
        requests=len(lengths),
        context=max(lengths) + drafts + 1,
        poison=True,
    )


def _schedule(case: Case) -> Iterator[list[int]]:
    """New tokens of each sequence, pass by pass: long prompts take more passes, short ones decode beside them."""
    done = [0] * len(case.lengths)
    while any(have < length for have, length in zip(done, case.lengths, strict=True)):
        counts = []
        for have, length in zip(done, case.lengths, strict=True):
            prompt = max(1, length - case.decoded)
            counts.append(min(case.chunk, prompt - have) if have < prompt else min(1, length - have))
        yield counts
        done = [have + count for have, count in zip(done, counts, strict=True)]


def _errors(model: PooledModel, current: Pass, wave: Sequence[Text]) -> torch.Tensor:
    spans = [slice(start, start + count) for start, count in zip(current.starts, current.counts, strict=True)]
    tokens = [token for text, span in zip(wave, spans, strict=True) for token in text.tokens[span]]
    got = torch.log_softmax(model.logits(model.hidden(tokens, current)), -1).cpu()
    expected = torch.cat([text.expected[span] for text, span in zip(wave, spans, strict=True)])
    following = [[*text.tokens[1:], 0][span] for text, span in zip(wave, spans, strict=True)]
    asked = torch.stack((torch.tensor([one for each in following for one in each]), expected.argmax(-1)), dim=1)
    return (got.gather(1, asked) - expected.gather(1, asked)).abs()
