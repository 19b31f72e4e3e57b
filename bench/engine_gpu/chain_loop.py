"""Greedy answers with and without the model's own drafts; what is kept of a chain is the product's `chains`.

`ops.py` calls it. A step gives the MTP block the positions that the model has just read, drafts on from its own output,
and lets the model read the chain: as SGLang's worker does, for batches of mixed lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hanmaru_worker.plugin.chains import greedy, sampled
from pooled_model import PooledModel
from two_pools import Pass, Pools, Request, next_pass


@dataclass(slots=True)
class Answer:
    """One sequence."""

    tokens: list[int]
    """Prompt and answer. The last one is in no pool yet."""
    request: Request
    prompt_tokens: int
    fresh: torch.Tensor
    """[rows, hidden]: the model's states at the positions that the MTP block has not read."""
    fresh_from: int = 0
    """The first of these positions."""
    steps: int = 0
    """Chains that were read; the first token comes from the prompt's pass."""

    def lacks(self, answer_tokens: int) -> bool:
        """Whether it is shorter than asked."""
        return len(self.tokens) - self.prompt_tokens < answer_tokens


@torch.inference_mode()
def answer(
    model: PooledModel, pools: Pools, prompts: Sequence[Sequence[int]], answer_tokens: int, drafts: int
) -> list[Answer]:
    """At least `answer_tokens` greedy tokens after each prompt; a last step may bring `drafts` more."""
    answers = _read_prompts(model, pools, prompts)
    while active := [each for each in answers if each.lacks(answer_tokens)]:
        _step(model, pools, active, drafts)
    for each in answers:
        pools.cut(each.request, 0)
    return answers


def sampling_deviation(device: torch.device, chains: int) -> float:
    """How far sampled chains are from the target's distribution, in standard deviations: the largest of 32 frequencies.

    Chains drafted from another distribution; the first token of each, and the second where the first draft was kept,
    must be drawn as if nothing had been drafted.
    """
    torch.manual_seed(6)
    with device:
        target = torch.randn(3, 16).mul(1.5).softmax(-1)
        proposed = torch.randn(2, 16).softmax(-1)
        drafts = torch.multinomial(proposed, chains, replacement=True).t()
        coins = torch.rand(chains, 2)
        verdict = sampled(drafts, target.expand(chains, 3, 16), proposed.expand(chains, 2, 16), coins)
        worst = 0.0
        for place, reached in enumerate((verdict.accepted >= 0, verdict.accepted >= 1)):
            tokens = verdict.tokens[reached, place]
            seen = torch.bincount(tokens, minlength=16) / len(tokens)
            spread = (target[place] * (1 - target[place]) / len(tokens)).sqrt()
            worst = max(worst, float(((seen - target[place]) / spread).abs().max()))
    return worst


def _read_prompts(model: PooledModel, pools: Pools, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    requests = [Request(row) for row in range(len(prompts))]
    lengths = [len(prompt) for prompt in prompts]
    states = model.hidden([token for prompt in prompts for token in prompt], next_pass(pools, requests, lengths))
    found = []
    for prompt, request, own in zip(prompts, requests, torch.split(states, lengths), strict=True):
        first = int(model.logits(own[-1:]).argmax())
        found.append(Answer([*prompt, first], request, len(prompt), own))
    return found


def _step(model: PooledModel, pools: Pools, active: Sequence[Answer], drafts: int) -> None:
    requests = [each.request for each in active]
    current = next_pass(pools, requests, [drafts + 1] * len(active))
    guesses = _draft(model, pools, active, drafts)
    chains = [[each.tokens[-1], *own] for each, own in zip(active, guesses.tolist(), strict=True)]
    states = model.hidden([token for chain in chains for token in chain], current)
    best = model.logits(states).argmax(-1).view(len(active), drafts + 1)
    verdict = greedy(guesses, best)
    read = torch.split(states, drafts + 1)
    found = zip(active, verdict.tokens.tolist(), verdict.accepted.tolist(), read, strict=True)
    for each, tokens, accepted, own in found:
        each.fresh, each.fresh_from = own[: accepted + 1], len(each.tokens) - 1
        each.tokens += tokens[: accepted + 1]
        each.steps += 1
        pools.cut(each.request, len(each.tokens) - 1)


def _draft(model: PooledModel, pools: Pools, active: Sequence[Answer], drafts: int) -> torch.Tensor:
    """int64 [sequences, drafts]: a chain for each. The slots of the chains' positions are already given."""
    guesses: list[torch.Tensor] = []
    starts = [each.fresh_from for each in active]
    tokens = [each.tokens[each.fresh_from + 1 :] for each in active]
    before = torch.cat([each.fresh for each in active])
    for _ in range(drafts):
        counts = [len(own) for own in tokens]
        current = Pass(pools, [each.request for each in active], starts, counts, pools.shape.window - 1)
        states = model.draft_hidden([token for own in tokens for token in own], before, current)
        before = states[torch.tensor(counts, device=states.device).cumsum(0) - 1]
        guesses.append(model.logits(before).argmax(-1))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
        tokens = [[token] for token in guesses[-1].tolist()]
    if not guesses:
        return torch.empty((len(active), 0), dtype=torch.int64, device=model.device)
    return torch.stack(guesses, dim=1)
