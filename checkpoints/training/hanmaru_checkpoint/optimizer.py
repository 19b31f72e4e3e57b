"""Muon for the matrices, Adam for the rest: about half the steps Adam alone needs, which is what half an hour allows.

Muon (Jordan et al., 2024) moves a matrix along the nearest orthogonal matrix to its momentum, found by a Newton-Schulz
iteration; stacks of experts are orthogonalised one by one. `train.py` and `mtp.py` step it; the learning-rate schedule
is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from the method's authors; five rounds bring singular values to about 1."""


class Optimizer:
    """Steps every parameter given; `scale` (0–1) multiplies both learning rates."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, matrix_rate: float, other_rate: float) -> None:
        named = list(named)
        self.matrices = [p for name, p in named if _is_matrix(name, p)]
        self.others = [p for name, p in named if not _is_matrix(name, p)]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.Adam(self.others, lr=other_rate, betas=(0.9, 0.98), eps=1e-9)
        self.matrix_rate, self.other_rate = matrix_rate, other_rate

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Moves every parameter that has a gradient, and forgets the gradients."""
        for p, momentum in zip(self.matrices, self.momenta, strict=True):
            if p.grad is None:
                continue
            momentum.lerp_(p.grad, 0.05)
            update = orthogonal(p.grad.lerp(momentum, 0.95))
            rows, columns = p.shape[-2:]
            p.add_(update, alpha=-self.matrix_rate * scale * max(1.0, rows / columns) ** 0.5)
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix in `[..., rows, columns]`, roughly."""
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    # bfloat16 is what the authors use: the factor need not be exact, and new CPUs multiply it several times faster.
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    factor: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return factor.float()


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and name not in ("embedding", "head") and not name.endswith(".gate")
