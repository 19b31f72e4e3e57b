"""What SGLang is told, in each of its processes, about the K-EXAONE family and about who may ask what.

SGLang calls `register` in every process before it reads its arguments. All about the model applies to that family
on any device, and to no other; `docs/sglang-plugin.md` has an entry for every target. What is decided is in
`exaone.py`, how the CPU computes in `cpu.py`.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from hanmaru_contracts.names import ENV_TIER_KEY_FILE
from sglang.srt.arg_groups.model_override_base import attention_backends_of, register_model_override, resolving_view
from sglang.srt.platforms import current_platform
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_platform

from hanmaru_worker.plugin import PLATFORM_NAME, access, exaone, host_pools, processes
from hanmaru_worker.plugin.tier import domains

GET_CONFIG = "sglang.srt.utils.hf_transformers.config.get_config"
ATTENTION_INIT = "sglang.srt.models.exaone_moe.ExaoneMoEAttention.__init__"


def register() -> None:
    """The entry point. Effects: SGLang's hook registry and its table of overrides by architecture."""
    HookRegistry.register(GET_CONFIG, state_hybrid_layout, HookType.AFTER)
    HookRegistry.register(ATTENTION_INIT, narrow_window, HookType.AFTER)
    HookRegistry.register(access.DECISION, access.decide, HookType.AROUND)
    HookRegistry.register(access.MIDDLEWARE, access.refuse_web_sockets, HookType.AFTER)
    for architecture in exaone.ARCHITECTURES:
        register_model_override(architecture)(choose_attention_backend)
    if os.environ.get("SGLANG_PLATFORM") == PLATFORM_NAME:
        HookRegistry.register(host_pools.LOAD, host_pools.load_layer, HookType.AROUND)
        HookRegistry.register(host_pools.BACKUP, host_pools.backup_layers, HookType.AROUND)
        if multiprocessing.parent_process() is None:
            HookRegistry.register(processes.SCHEDULERS, processes.launch_schedulers, HookType.AROUND)
            HookRegistry.register(processes.DETOKENIZERS, processes.launch_detokenizers, HookType.AROUND)
    if os.environ.get(ENV_TIER_KEY_FILE):
        for target in domains.SPECS:
            HookRegistry.register(target, domains.keep_domain, HookType.AFTER)
        for target in domains.SERVED:
            HookRegistry.register(target, domains.serve_domain, HookType.AROUND)


def state_hybrid_layout(config: Any, *_args: Any, **_kwargs: Any) -> None:
    """Put the layout where SGLang looks for it. Idempotent, because SGLang caches these objects."""
    if getattr(config, "model_type", None) != exaone.MODEL_TYPE:
        return
    sparse = exaone.sparse_layers(config.to_dict())
    if sparse is not None:
        config.is_moe_layer = sparse
    if not config.sliding_window or "sliding_attention" not in config.layer_types:
        return
    config.hybrid_layer_pattern = exaone.hybrid_layer_pattern(config.layer_types, config.num_hidden_layers)
    config.is_hybrid_swa = True
    # Upstream's switch-off of the hybrid memory, and its list of backends, hang on this attribute alone.
    config.sliding_window_pattern = None


def narrow_window(_result: None, layer: Any, config: Any, *_args: Any, **_kwargs: Any) -> None:
    """Attend `sliding_window` tokens, the query's own included; upstream's layer attends one more.

    The MTP block is made of the same layers. Pools and `config.sliding_window` keep the model's number.
    """
    if layer.sliding_window:
        layer.attn.sliding_window_size = exaone.keys_before(config.sliding_window)


def choose_attention_backend(server_args: Any, hf_config: Any) -> dict[str, str]:
    """Upstream's choice and refusal of backends for this family, which `sliding_window_pattern` used to carry."""
    if not getattr(hf_config, "is_hybrid_swa", False) or current_platform.is_out_of_tree():
        return {}  # a platform from outside, ours included, brings its own
    chosen = [backend for backend in attention_backends_of(resolving_view(server_args)) if backend]
    exaone.check_attention_backends(chosen)
    if chosen:
        return {}
    facts = get_platform()
    capability = facts.device_sm if facts.is_cuda else None
    return {"attention_backend": exaone.default_attention_backend(capability, is_sm100=facts.is_sm100)}
