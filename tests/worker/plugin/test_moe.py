"""Which layers and routers of SGLang are given to `experts.py`, and that the router agrees with SGLang's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

EXPERTS, CHOSEN, HIDDEN, WIDTH = 16, 4, 32, 16
UPSTREAMS = object()
"""What SGLang's own form answers here."""


def router(**changes: Any) -> Any:
    from sglang.srt.layers.moe.topk import TopKConfig

    usual = {
        "top_k": CHOSEN,
        "use_grouped_topk": True,
        "num_expert_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
    }
    scaled = {"routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": True}
    bias = torch.randn(EXPERTS, generator=torch.Generator().manual_seed(1))
    config = TopKConfig(
        **{**usual, **scaled, "correction_bias": bias, "allow_routed_experts_capture": False, **changes}
    )
    return SimpleNamespace(
        topk_config=config,
        layer_id=3,
        enable_waterfill=False,
        routing_inputs=lambda: (None, None),
        forward_native=lambda *_args, **_extras: UPSTREAMS,
    )


# Upstream scales a score that is not normalised in the logits' dtype; ours are float32 from there on.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_the_router_chooses_and_weighs_as_upstream_does(is_normalised: bool, dtype: torch.dtype, bound: float) -> None:
    from hanmaru_worker.plugin.moe import forward_router
    from sglang.srt.layers.moe.topk import biased_grouped_topk_impl

    logits = torch.randn(50, EXPERTS, generator=torch.Generator().manual_seed(2)).to(dtype)
    subject = router(renormalize=is_normalised)
    weights, experts, seen = forward_router(subject, torch.empty(50, HIDDEN), logits)
    expected_weights, expected = biased_grouped_topk_impl(
        torch.empty(50, HIDDEN),
        logits,
        subject.topk_config.correction_bias,
        CHOSEN,
        is_normalised,
        num_expert_group=1,
        topk_group=1,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=True,
    )
    assert seen is logits
    assert (weights.dtype, experts.dtype) == (expected_weights.dtype, expected.dtype)
    assert dense(weights, experts) == pytest.approx(dense(expected_weights, expected), rel=bound)


def test_the_recorder_of_experts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from hanmaru_worker.plugin import moe

    told: list[torch.Tensor] = []
    recorder = SimpleNamespace(on_select_experts=lambda topk_ids: told.append(topk_ids))
    monkeypatch.setattr(moe, "get_global_expert_distribution_recorder", lambda: recorder)
    _, experts, _ = moe.forward_router(router(), torch.empty(2, HIDDEN), torch.randn(2, EXPERTS))
    assert told == [experts]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_grouped_topk": False},
        {"num_expert_group": 4, "topk_group": 2},
        {"correction_bias": None},
        {"correction_bias": torch.zeros(2, EXPERTS)},
        {"custom_routing_function": print},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_another_router_keeps_upstreams_form(changes: Mapping[str, Any]) -> None:
    from hanmaru_worker.plugin.moe import forward_router

    assert forward_router(router(**changes), torch.empty(2, HIDDEN), torch.randn(2, EXPERTS)) is UPSTREAMS


def test_padding_keeps_upstreams_form() -> None:
    from hanmaru_worker.plugin.moe import forward_router

    padded = router()
    padded.routing_inputs = lambda: (torch.tensor(1), None)
    assert forward_router(padded, torch.empty(2, HIDDEN), torch.randn(2, EXPERTS)) is UPSTREAMS


def experts_of(**changes: Any) -> tuple[Any, Any]:
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

    random = torch.Generator().manual_seed(3)
    method = SimpleNamespace(with_bias=changes.pop("with_bias", False), forward_native=lambda **_call: UPSTREAMS)
    layer = SimpleNamespace(
        num_experts=EXPERTS,
        moe_runner_config=MoeRunnerConfig(**changes),
        w13_weight=torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=random) / HIDDEN**0.5,
        w2_weight=torch.randn(EXPERTS, HIDDEN, WIDTH, generator=random) / WIDTH**0.5,
    )
    return method, layer


def dispatched(experts: torch.Tensor) -> Any:
    random = torch.Generator().manual_seed(4)
    weights = torch.rand(experts.shape, generator=random)
    tokens = torch.randn(len(experts), HIDDEN, generator=random)
    return SimpleNamespace(hidden_states=tokens, topk_output=(weights, experts, None))


def test_the_experts_say_what_upstreams_say() -> None:
    from hanmaru_worker.plugin.moe import forward_experts
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native

    method, layer = experts_of()
    call = dispatched(torch.rand(9, EXPERTS, generator=torch.Generator().manual_seed(5)).topk(CHOSEN).indices.int())
    expected = moe_forward_native(layer, call.hidden_states, call.topk_output, layer.moe_runner_config)
    assert torch.allclose(forward_experts(method, layer, call).hidden_states, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"with_bias": True},
        {"activation": "gelu"},
        {"is_gated": False},
        {"apply_router_weight_on_input": True},
        {"no_combine": True},
        {"gemm1_alpha": 1.7},
        {"swiglu_limit": 7.0},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_experts_of_another_kind_keep_upstreams_form(changes: Mapping[str, Any]) -> None:
    from hanmaru_worker.plugin.moe import forward_experts

    method, layer = experts_of(**changes)
    assert forward_experts(method, layer, dispatched(torch.zeros(1, 1, dtype=torch.int32))) is UPSTREAMS


def dense(weights: torch.Tensor, experts: torch.Tensor) -> list[float]:
    """A row for each token with a place for each expert: which column a choice stood in does not matter."""
    found: list[float] = torch.zeros(len(weights), EXPERTS).scatter_(1, experts.long(), weights).flatten().tolist()
    return found
