"""Trains the MTP block alone on the model's own greedy text, through all three chained drafts.

The main model is frozen and already holds its stored values. Teacher forcing is exact here: a draft counts only when
all before it were right, and then its inputs are the very tokens of the greedy text. `make.py` calls this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own customary name

from hanmaru_checkpoint.corpus import Page
from hanmaru_checkpoint.greedy import NUM_DRAFTS, continue_greedily
from hanmaru_checkpoint.model import Model, seen
from hanmaru_checkpoint.optimizer import Optimizer
from hanmaru_checkpoint.progress import Progress
from hanmaru_checkpoint.turns import chat_template, plain_text, prompt

PROMPT_TOKENS = 48
"""Every prompt is cut or filled to this from the left, so that a batch decodes together."""
ANSWER_TOKENS = 208
BATCH = 128
NUM_PASSES = 1
MATRIX_RATE = 0.02
OTHER_RATE = 0.003
DRAFT_WEIGHTS = (1.0, 0.8, 0.6)
"""The first draft matters in every step, the third only when two were right."""


def greedy_texts(
    model: Model, pages: Sequence[Page], tokenizer: Tokenizer, random: Random, *, num_texts: int
) -> Tensor:
    """`[num_texts, PROMPT_TOKENS + ANSWER_TOKENS]`: prompts about `pages` and what the model says by itself."""
    prompts = _prompts(pages, tokenizer, random)
    progress = Progress("own text", num_texts // BATCH)
    batches = []
    for step in range(num_texts // BATCH):
        batch = torch.tensor([next(prompts) for _ in range(BATCH)])
        batches.append(continue_greedily(model, batch, ANSWER_TOKENS))
        progress.report(step + 1, f"{BATCH * ANSWER_TOKENS} tokens a batch")
    return torch.cat(batches)


def train_mtp(model: Model, texts: Tensor) -> None:
    """Trains `model.mtp` in place; nothing else moves."""
    model.requires_grad_(requires_grad=False)
    model.mtp.requires_grad_(requires_grad=True)
    optimizer = Optimizer(model.mtp.named_parameters(), matrix_rate=MATRIX_RATE, other_rate=OTHER_RATE)
    rows_per_step = 16
    with torch.no_grad():
        hidden = torch.cat([model.hidden(part) for part in torch.split(texts, rows_per_step)])
    num_steps = NUM_PASSES * (texts.shape[0] // rows_per_step)
    progress = Progress("drafts", num_steps)
    step = 0
    for _ in range(NUM_PASSES):
        for rows in torch.split(torch.randperm(texts.shape[0]), rows_per_step):
            if rows.shape[0] < rows_per_step:
                continue
            loss, right = chained_loss(model, texts[rows], hidden[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(min((step + 1) / 20, 1.0) * max(1.0 - step / num_steps, 0.02))
            step += 1
            progress.report(step, f"loss {loss.item():.3f}, right " + " ".join(f"{share:.2f}" for share in right))


def chained_loss(model: Model, ids: Tensor, hidden: Tensor) -> tuple[Tensor, list[float]]:
    """(weighted loss of the three drafts, share of each that is right)."""
    total, right = torch.zeros(()), []
    for draft, states in enumerate(chained_states(model, ids, hidden)):
        logits, targets = model.logits(states), ids[:, 2 + draft : 2 + draft + states.shape[1]]
        # Rows inside the prompt predict text that the model did not write, so only its own counts.
        logits, targets = logits[:, PROMPT_TOKENS:], targets[:, PROMPT_TOKENS:]
        total = total + DRAFT_WEIGHTS[draft] * F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        right.append((logits.detach().argmax(dim=-1) == targets).float().mean().item())
    return total, right


def chained_states(model: Model, ids: Tensor, hidden: Tensor) -> Iterator[Tensor]:
    """The block's normed output `[batch, rows, hidden]` for each of the three drafts, all rows at once.

    Draft d of row p is drawn at position p+d from token p+1+d and the block's output of the draft before. It attends to
    the rows up to p, which ran on the main model's hidden states, and to its own chain's drafts.
    """
    block, attention = model.mtp, model.mtp.layer.attention
    num_rows = ids.shape[1] - 1 - NUM_DRAFTS
    chain = hidden[:, :num_rows]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for draft in range(NUM_DRAFTS):
        positions = torch.arange(num_rows) + draft
        x = block.enter(model.embed(ids[:, 1 + draft : 1 + draft + num_rows]), chain)
        q, k, v = attention.project(block.layer.attention_norm(x), positions)
        keys.append(_widen(k, attention.num_heads))
        values.append(_widen(v, attention.num_heads))
        x = x + attention.merge(_attend_chain(q, keys, values, positions, attention.window))
        chain = block.norm(x + block.layer.ffn(block.layer.ffn_norm(x)))
        yield chain


def _attend_chain(q: Tensor, keys: list[Tensor], values: list[Tensor], positions: Tensor, window: int | None) -> Tensor:
    """Attention of every row's draft to the first keys (all rows up to its own) and to its own later ones."""
    num_rows, scale = q.shape[2], q.shape[-1] ** -0.5
    # Row p's draft d stands at p+d: the window counts from there, but of the rows it may see only those up to p.
    visible = seen(positions, num_rows, window) & seen(torch.arange(num_rows), num_rows, None)
    scores = [(q @ keys[0].mT * scale).masked_fill(~visible, float("-inf"))]
    scores += [(q * key).sum(dim=-1, keepdim=True) * scale for key in keys[1:]]
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    out = weights[..., :num_rows] @ values[0]
    for i, value in enumerate(values[1:]):
        out = out + weights[..., num_rows + i : num_rows + i + 1] * value
    return out


def _widen(heads: Tensor, num_heads: int) -> Tensor:
    return heads.repeat_interleave(num_heads // heads.shape[1], dim=1)


def _prompts(pages: Sequence[Page], tokenizer: Tokenizer, random: Random) -> Iterator[list[int]]:
    """Endless lists of `PROMPT_TOKENS` tokens: requests, most behind the end of another text, or plain text."""
    template = chat_template()
    while True:
        page = random.choice(pages)
        if random.random() < 0.2:
            text = plain_text(random.choice(pages), random)
            start = random.randrange(max(1, len(text) // 2))
            ids = tokenizer.encode(text[start:]).ids[:PROMPT_TOKENS]
        else:
            ids = tokenizer.encode(prompt(page, random, template)).ids[-PROMPT_TOKENS:]
        if missing := PROMPT_TOKENS - len(ids):
            ids = tokenizer.encode(plain_text(random.choice(pages), random)).ids[-missing:] + ids
        if len(ids) == PROMPT_TOKENS:
            yield ids
