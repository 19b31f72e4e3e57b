"""Speculative decoding on chains, in plain torch: where a step's keys go, what is drafted right, what is sampled.

A step checks, for each sequence, a *chain*: the last token it has, and `drafts` guesses of what follows. The target
model gives logits after each of the chain's tokens; the longest run of right guesses is kept, and one more token
comes from the target itself. `drafting.py` puts these functions where SGLang has kernels; trees with branches are
refused there. Imports torch alone, and knows no pools and no requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one step."""

    tokens: torch.Tensor
    """int64 [sequences, drafts + 1]: what follows each of the chain's tokens; to be read up to `accepted`, included."""
    accepted: torch.Tensor
    """int64 [sequences]: how many of the drafts were right; the sequence grows by one more."""


def refuse_other_than_chains(flags: Any) -> None:
    """Raise a ValueError that names the flag. `flags` has SGLang's speculative ones, None where they are not set."""
    if flags.speculative_eagle_topk not in (None, 1):
        raise ValueError(
            f"--speculative-eagle-topk {flags.speculative_eagle_topk}: the native CPU platform checks one chain of"
            " drafts for each sequence, not a tree; use --speculative-eagle-topk 1"
        )
    asked = {
        "--speculative-adaptive": flags.speculative_adaptive,
        "--enable-multi-layer-eagle": flags.enable_multi_layer_eagle,
        "--speculative-accept-threshold-single": flags.speculative_accept_threshold_single != 1,
        "--speculative-accept-threshold-acc": flags.speculative_accept_threshold_acc != 1,
    }
    unfit = [flag for flag, is_asked in asked.items() if is_asked]
    if unfit:
        raise ValueError(f"{', '.join(unfit)}: the native CPU platform drafts without; leave it out")


def greedy(drafts: torch.Tensor, best: torch.Tensor) -> Verdict:
    """Keep the drafts that are the target's own choice: exactly its greedy text.

    `drafts` is int64 [sequences, drafts] and `best`, the target's choice after each of the chain's tokens, has one
    column more.
    """
    return Verdict(best, _leading(drafts == best[:, :-1]))


def sampled(drafts: torch.Tensor, target: torch.Tensor, draft: torch.Tensor, coins: torch.Tensor) -> Verdict:
    """Keep a draft with odds min(1, p/q); where the first falls, draw from what the target's p has over the draft's q.

    The rule of speculative sampling (Leviathan et al. 2023): every token has the target's distribution if each draft
    was drawn from its row of `draft`, or if its row of `target` holds one token alone, as a greedy request's does.
    `target` is float [sequences, drafts + 1, vocabulary] and `draft` [sequences, drafts, vocabulary], rows summing to
    1; `coins` is float [sequences, drafts] in [0, 1).
    """
    accepted = _leading(coins * _of(draft, drafts) < _of(target[:, :-1], drafts))
    rows = torch.arange(len(drafts))
    left = target[rows, accepted]
    is_cut = (accepted < drafts.shape[1])[:, None]
    over = (left - draft[rows, accepted.clamp(max=drafts.shape[1] - 1)]).clamp_(min=0)
    # Nothing over: the two rows are one but for rounding, and any draw from it is right.
    left = torch.where(is_cut & (over.sum(1, keepdim=True) > 0), over, left)
    tokens = torch.nn.functional.pad(drafts, (0, 1))
    tokens[rows, accepted] = draw(left)
    return Verdict(tokens, accepted)


def draw(weights: torch.Tensor) -> torch.Tensor:
    """One token of each row of float [rows, vocabulary], not all 0: int64 [rows].

    One random number a row; `torch.multinomial` makes one for each token of the vocabulary, which took 5 % of a step.
    """
    reached = weights.double().cumsum(1)
    coins = torch.rand(len(weights), 1, dtype=torch.float64) * reached[:, -1:]
    return torch.searchsorted(reached, coins, right=True).squeeze(1)


def distribution(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    *,
    top_ks: torch.Tensor | None = None,
    top_ps: torch.Tensor | None = None,
    min_ps: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a token is drawn from without speculation: float32 [rows, vocabulary], each row summing to 1.

    Filters apply in SGLang's order (top-k and top-p to the same sorted probabilities, then min-p relative to the best),
    each [rows] or None where no row asks for it.
    """
    probabilities = torch.softmax(logits.float() / temperatures.view(-1, 1), dim=-1)
    if top_ks is None and top_ps is None and min_ps is None:
        return probabilities
    kept, order = probabilities.sort(dim=-1, descending=True)
    above = kept.cumsum(-1) - kept
    if top_ks is not None:
        kept.masked_fill_(torch.arange(kept.shape[1]) >= top_ks.view(-1, 1), 0.0)
    if top_ps is not None:
        kept.masked_fill_(above > top_ps.view(-1, 1), 0.0)
    if min_ps is not None:
        kept.masked_fill_(kept < kept[:, :1] * min_ps.view(-1, 1), 0.0)
    kept /= kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(1, order, kept)


def window_slots(request_slots: torch.Tensor, requests: torch.Tensor, starts: torch.Tensor, width: int) -> torch.Tensor:
    """[sequences, width]: the slots that the table holds for `width` positions of each sequence from its start on."""
    return request_slots[requests[:, None], starts[:, None] + torch.arange(width)]


def assign_slots(
    request_slots: torch.Tensor, requests: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write `slots`, one sequence's after another's, into the table at positions `starts` up to `ends`."""
    counts = (ends - starts).to(torch.int64)
    first = torch.cumsum(counts, 0) - counts
    rows = torch.repeat_interleave(requests.to(torch.int64), counts)
    positions = torch.arange(len(rows)) + torch.repeat_interleave(starts - first, counts)
    request_slots[rows, positions] = slots[: len(rows)].to(request_slots.dtype)


def _leading(is_right: torch.Tensor) -> torch.Tensor:
    return is_right.to(torch.int64).cumprod(1).sum(1)


def _of(probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return probabilities.gather(2, tokens[:, :, None]).squeeze(2)
