"""The experts' sum against one token and one expert at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from hanmaru_worker.plugin.experts import add_experts, choose_experts
from hypothesis import given, settings
from hypothesis import strategies as st

HIDDEN, WIDTH = 32, 16
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


class Layer:
    """Random experts and tokens of one layer."""

    def __init__(self, experts: int, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.gate_up = self._normal(experts, 2 * WIDTH, HIDDEN, dtype=dtype) / HIDDEN**0.5
        self.down = self._normal(experts, HIDDEN, WIDTH, dtype=dtype) / WIDTH**0.5
        self.tokens = self._normal(rows, HIDDEN, dtype=dtype)

    def _normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(dtype)

    def one_at_a_time(self, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(self.tokens.shape, dtype=torch.float64)
        for row, token in enumerate(self.tokens.double()):
            for weight, expert in zip(weights[row].tolist(), experts[row].tolist(), strict=True):
                if expert >= 0:
                    gate, up = (self.gate_up[expert].double() @ token).chunk(2)
                    out[row] += weight * (self.down[expert].double() @ (torch.nn.functional.silu(gate) * up))
        return out

    def error(self, weights: torch.Tensor, experts: torch.Tensor) -> float:
        got = add_experts(self.tokens, self.gate_up, self.down, weights, experts)
        assert got.dtype == self.tokens.dtype
        difference = got.double() - self.one_at_a_time(weights, experts)
        return float(difference.abs().max()) if difference.numel() else 0.0


@st.composite
def choices(draw: st.DrawFn) -> tuple[Layer, torch.Tensor, torch.Tensor]:
    """A layer and, for each of its tokens, different experts: often few of them, so that most have no tokens."""
    experts = draw(st.integers(1, 12))
    rows = draw(st.integers(0, 40))
    seed = draw(st.integers(0, 2**31))
    favoured = draw(st.lists(st.integers(0, experts - 1), min_size=1, max_size=experts, unique=True))
    chosen = draw(st.integers(1, len(favoured)))
    layer = Layer(experts, rows, seed)
    picks = [[favoured[i] for i in torch.randperm(len(favoured), generator=layer.random)[:chosen]] for _ in range(rows)]
    found = torch.tensor(picks, dtype=torch.int32).reshape(rows, chosen)
    return layer, torch.rand(rows, chosen, generator=layer.random), found


@settings(max_examples=80, deadline=None)
@given(choices())
def test_uneven_loads_add_up_to_what_each_expert_says(case: tuple[Layer, torch.Tensor, torch.Tensor]) -> None:
    layer, weights, experts = case
    assert layer.error(weights, experts) < BOUNDS[torch.float32]


@settings(max_examples=60, deadline=None)
@given(case=choices(), ranks=st.integers(1, 4))
def test_the_ranks_parts_add_up_to_what_one_rank_gives(
    case: tuple[Layer, torch.Tensor, torch.Tensor], ranks: int
) -> None:
    layer, weights, experts = case
    whole = add_experts(layer.tokens, layer.gate_up, layer.down, weights, experts)
    parts = torch.zeros_like(whole)
    for held in torch.arange(len(layer.gate_up)).tensor_split(ranks):
        first, count = (int(held[0]), len(held)) if len(held) else (0, 0)
        is_here = (experts >= first) & (experts < first + count)
        here = torch.where(is_here, experts - first, -1)
        part = slice(first, first + count)
        parts += add_experts(layer.tokens, layer.gate_up[part], layer.down[part], weights, here)
    assert torch.allclose(parts, whole, atol=BOUNDS[torch.float32])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 64, 300])
def test_any_number_of_tokens_and_both_dtypes(rows: int, dtype: torch.dtype) -> None:
    layer = Layer(16, rows, rows, dtype)
    weights, experts = torch.rand(rows, 16, generator=layer.random).topk(4, dim=-1)
    assert layer.error(weights, experts.to(torch.int32)) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [1, 5])
def test_tokens_of_other_ranks_experts_alone_get_nothing(rows: int, dtype: torch.dtype) -> None:
    layer = Layer(4, rows, 3, dtype)
    assert not add_experts(
        layer.tokens, layer.gate_up, layer.down, torch.rand(rows, 2), torch.full((rows, 2), -1)
    ).any()


def test_an_expert_nobody_chose_is_not_read() -> None:
    layer = Layer(4, 6, 4)
    layer.gate_up[2:] = torch.nan
    layer.down[2:] = torch.nan
    assert layer.error(torch.rand(6, 2), torch.tensor([[0, 1]] * 6, dtype=torch.int32)) < BOUNDS[torch.float32]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 20), seed=st.integers(0, 2**31), is_normalised=st.booleans())
def test_the_router_is_upstreams_for_one_group(rows: int, seed: int, is_normalised: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    logits, bias = torch.randn(rows, 16, generator=random), torch.randn(16, generator=random)
    weights, experts = choose_experts(logits, bias, 4, is_normalised=is_normalised, scale=2.5)
    scores = logits.double().sigmoid()
    for row in range(rows):
        best = sorted(range(16), key=lambda expert: -float(scores[row, expert] + bias[expert].double()))[:4]
        assert sorted(experts[row].tolist()) == sorted(best)
        total = float(scores[row, best].sum()) if is_normalised else 1.0
        for weight, expert in zip(weights[row].tolist(), experts[row].tolist(), strict=True):
            assert weight == pytest.approx(2.5 * float(scores[row, expert]) / total, rel=1e-5)
