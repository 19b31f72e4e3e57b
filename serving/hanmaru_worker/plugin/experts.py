"""A layer's routed experts in plain torch: which a token goes to, and what those here add to it. No engine.

`moe.py` calls it for SGLang. An expert is `down(silu(gate(x)) * up(x))`; this rank may hold only some of them, and
a token's share of the others is added by the ranks that hold them. The router knows one group of experts with sigmoid
scores, as K-EXAONE's has; other routers, activations and biases are left to the engine's own forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

PADDED_ROWS = 1024
PADDING = 4
"""Up to so many rows, and so many times that padded, bfloat16 experts are multiplied as one batch, used or not.

Its single products are slow to begin (20 us of oneDNN each), so 16 experts of the tiny checkpoint take 117, 164 and
544 us for 1, 16 and 256 tokens padded, and 209, 606 and 941 grouped; at 2,048 tokens grouped wins (4.3 against 3.2 ms).
In float32 grouped wins nearly everywhere: 82 against 97 us, 169 against 209, 948 against 1,242. Copying each token's
own weights, as upstream's compiled form does, took 1,216 us for 16 tokens (one core, 2026-11-23).
"""


def choose_experts(
    logits: torch.Tensor, bias: torch.Tensor, count: int, *, is_normalised: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 weights and int32 experts, both [tokens, count], in no order, of router logits [tokens, experts].

    `bias` [experts] moves the choice and not the weights, which are sigmoid scores: divided by their sum when
    `is_normalised`, then multiplied by `scale`.
    """
    scores = logits.sigmoid()
    experts = (scores + bias).topk(count, dim=-1, sorted=False).indices
    weights = scores.gather(1, experts).float()
    if is_normalised:
        # A token whose scores all underflow gets no experts instead of NaN; as upstream does.
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, experts.to(torch.int32)


def add_experts(
    tokens: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of each token's experts, [tokens, hidden] in the tokens' dtype, summed in float32.

    `gate_up` [local experts, 2 x width, hidden] and `down` [local experts, hidden, width] are this rank's; `experts`
    [tokens, chosen] index them, and a negative one is another rank's (or nobody's): it adds nothing.
    """
    rows, chosen = experts.shape
    if not rows:
        return torch.empty_like(tokens)
    order, groups = _by_expert(experts, len(gate_up), tokens.dtype)
    mine = tokens[order // chosen]
    gate, up = groups.multiply(mine, gate_up).chunk(2, dim=-1)
    parts = groups.multiply(functional.silu(gate).mul_(up), down)
    shares = parts.new_zeros((rows * chosen, parts.shape[1])).index_copy_(0, order, parts)
    summed = torch.bmm(weights.float().unsqueeze(1), shares.view(rows, chosen, -1).float())
    return summed.squeeze(1).to(tokens.dtype)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows of tokens in the order of their experts."""

    ends: torch.Tensor
    """int32 [local experts]: past the last row of each; the first expert's begin at 0."""
    most: int
    """Rows of the fullest expert, where `places` are known."""
    places: torch.Tensor | None
    """int64 [rows]: where each lies when every expert has `most`; None where that is not worth it."""

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Each row through its expert's matrix [out, in]."""
        if self.places is None:
            return functional.grouped_mm(rows, matrices.transpose(1, 2), offs=self.ends)
        padded = rows.new_zeros((len(matrices) * self.most, rows.shape[1])).index_copy_(0, self.places, rows)
        products = torch.bmm(padded.view(len(matrices), self.most, rows.shape[1]), matrices.transpose(1, 2))
        return products.flatten(0, 1)[self.places]


def _by_expert(experts: torch.Tensor, local: int, dtype: torch.dtype) -> tuple[torch.Tensor, _Groups]:
    """Places of the local choices in `experts`, flat, in the order of their experts; and their groups."""
    ordered, order = experts.flatten().sort()
    bounds = torch.searchsorted(ordered, torch.arange(local + 1, dtype=ordered.dtype), out_int32=True)
    first = int(bounds[0])  # those of other ranks are negative
    order, ordered, ends = order[first:], ordered[first:], bounds[1:] - first
    if dtype is torch.float32 or len(order) > PADDED_ROWS:
        return order, _Groups(ends, 0, None)
    most = int(bounds.diff().max())
    if local * most > PADDING * len(order):
        return order, _Groups(ends, 0, None)
    starts = (bounds[:-1] - first)[ordered]
    return order, _Groups(ends, most, ordered * most + torch.arange(len(order)) - starts)
