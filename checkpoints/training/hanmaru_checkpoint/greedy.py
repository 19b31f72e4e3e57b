"""Greedy text, plainly and by drafting as the engine drafts; the second measures tokens a step.

`mtp.py` trains on the first; `make.py` and the tests measure with the second.

How SGLang's EAGLE worker runs an MTP block, top-k 1, three steps (its `eagle_worker_v2.py`):
row p of the block takes the embedding of token p+1 and the main model's final-normed hidden state of position p, at
RoPE position p, and predicts token p+2. After a verification the rows of accepted tokens are run again on the main
model's hidden states, which replaces what drafting wrote. The second and third draft take the block's own normed output
instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hanmaru_checkpoint.model import Cache, LayerCache, Model
from hanmaru_checkpoint.shape import END_OF_TURN_ID

NUM_DRAFTS = 3


@torch.inference_mode()
def continue_greedily(model: Model, prompts: Tensor, num_tokens: int) -> Tensor:
    """`prompts` `[batch, tokens]` with `num_tokens` greedy ones after each; the end of a turn does not stop it."""
    cache = Cache.of(len(model.layers))
    ids, fresh = prompts, prompts
    for _ in range(num_tokens):
        fresh = model.logits(model.hidden(fresh, cache)[:, -1:]).argmax(dim=-1)
        ids = torch.cat((ids, fresh), dim=1)
    return ids


@dataclass(frozen=True, slots=True)
class Drafted:
    """One answer made by drafting and verifying."""

    ids: list[int]
    """The answer alone, which is what plain greedy decoding gives."""
    num_steps: int
    """Verifications; the first token of the answer comes from prefill, before any of them."""


@torch.inference_mode()
def answer_by_drafting(model: Model, prompt: list[int], max_tokens: int) -> Drafted:
    """Greedy answer to one prompt, to the end of its turn or `max_tokens` (the last step may go past it)."""
    cache, rows = Cache.of(len(model.layers)), LayerCache()
    ids = list(prompt)
    hidden = model.hidden(torch.tensor([ids]), cache)
    ids.append(_greedy(model, hidden[:, -1:])[0])
    num_steps = 0
    while len(ids) - len(prompt) <= max_tokens and END_OF_TURN_ID not in ids[len(prompt) :]:
        verified = len(ids) - 1
        drafts = _draft(model, rows, hidden, ids)
        rows.cut(verified)
        hidden = model.hidden(torch.tensor([[ids[-1], *drafts]]), cache)
        truth = _greedy(model, hidden)
        accepted = next((i for i, draft in enumerate(drafts) if draft != truth[i]), len(drafts))
        ids += truth[: accepted + 1]
        hidden = hidden[:, : accepted + 1]
        cache.cut(len(ids) - 1)
        num_steps += 1
    return Drafted(ids[len(prompt) :], num_steps)


def _draft(model: Model, rows: LayerCache, hidden: Tensor, ids: list[int]) -> list[int]:
    """Runs the rows that `hidden` is new for, then two more on the block's own output."""
    position = rows.num_tokens
    following = torch.tensor([ids[position + 1 :]])
    drafts: list[int] = []
    for _ in range(NUM_DRAFTS):
        positions = torch.arange(position, position + following.shape[1])
        hidden = model.mtp(model.embed(following), hidden, positions, rows)[:, -1:]
        drafts += _greedy(model, hidden)
        following, position = torch.tensor([[drafts[-1]]]), rows.num_tokens
    return drafts


def _greedy(model: Model, hidden: Tensor) -> list[int]:
    chosen: list[int] = model.logits(hidden)[0].argmax(dim=-1).tolist()
    return chosen
