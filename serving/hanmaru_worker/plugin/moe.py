"""Gives SGLang `experts.py` as the routed experts of the CPU platform, called by `HanmaruCpuPlatform.init_backend`.

SGLang's own plain-torch form indexes weights with -1 where a token's expert belongs to another rank, and its router
makes twenty small operations of which one group of experts needs eight. A layer or router of any other kind than
`experts.py` knows keeps SGLang's form. Weights, dispatch between ranks and the sum over them stay SGLang's.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.topk import StandardTopKOutput, TopK, capture_routed_experts_if_allowed
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

from hanmaru_worker.plugin.experts import add_experts, choose_experts

DISPATCH_KEY = "native"
"""What the platform's `get_dispatch_key_name` says."""


def register() -> None:
    """Effects: SGLang's table of forms by platform."""
    BaseFusedOp.register_oot_forward(UnquantizedFusedMoEMethod, forward_experts, DISPATCH_KEY)
    BaseFusedOp.register_oot_forward(TopK, forward_router, DISPATCH_KEY)


def forward_experts(method: Any, layer: Any, dispatch_output: Any) -> Any:
    """SGLang's `forward` of unquantised experts: ids are this rank's, -1 where the expert is elsewhere."""
    config = layer.moe_runner_config
    if not _has_plain_experts(method, config):
        return method.forward_native(layer=layer, dispatch_output=dispatch_output)
    weights, ids, _ = dispatch_output.topk_output
    tokens = dispatch_output.hidden_states
    out = add_experts(tokens, layer.w13_weight, layer.w2_weight, weights, ids)
    return StandardCombineInput(hidden_states=out)


def forward_router(router: Any, hidden_states: torch.Tensor, router_logits: torch.Tensor, **extras: Any) -> Any:
    """SGLang's `forward` of a router. Who records or captures which experts were chosen is told, as upstream does."""
    config = router.topk_config
    unusual = (*extras.values(), *router.routing_inputs())
    if not _has_one_sigmoid_group(router, config) or any(value is not None for value in unusual):
        return router.forward_native(hidden_states, router_logits, **extras)
    weights, experts = choose_experts(
        router_logits,
        config.correction_bias,
        config.top_k,
        is_normalised=config.renormalize,
        scale=config.routed_scaling_factor if config.apply_routed_scaling_factor_on_output else 1.0,
    )
    capture_routed_experts_if_allowed(config, router.layer_id, experts)
    get_global_expert_distribution_recorder().on_select_experts(topk_ids=experts)
    return StandardTopKOutput(weights, experts, router_logits)


def _has_plain_experts(method: Any, config: Any) -> bool:
    extras = (config.gemm1_alpha, config.gemm1_beta, config.gemm1_clamp_limit, config.swiglu_limit)
    return (
        config.activation == "silu"
        and config.is_gated
        and not (method.with_bias or config.apply_router_weight_on_input or config.no_combine)
        and all(extra is None for extra in extras)
    )


def _has_one_sigmoid_group(router: Any, config: Any) -> bool:
    bias = config.correction_bias
    return (
        config.use_grouped_topk
        and config.num_expert_group == 1
        and bias is not None
        and bias.ndim == 1
        and config.custom_routing_function is None
        and not (config.num_shared_topk_slots or router.enable_waterfill)
    )
