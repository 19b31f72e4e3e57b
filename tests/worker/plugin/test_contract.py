"""The pinned SGLang still has every name our plugin stands on; a failure says what moved and who used it."""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

import pytest

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

ENTRY = "docs/sglang-plugin.md"

CALLABLES: dict[str, tuple[str, list[str]]] = {
    # target: (who uses it, leading parameters we rely on)
    "sglang.srt.utils.hf_transformers.config.get_config": ("hooks.state_hybrid_layout", ["model", "trust_remote_code"]),
    "sglang.srt.models.exaone_moe.ExaoneMoEAttention.__init__": ("hooks.narrow_window", ["self", "config"]),
    "sglang.srt.utils.auth.decide_request_auth": (
        "access.decide",
        ["method", "path", "authorization_header", "api_key", "admin_api_key", "auth_level"],
    ),
    "sglang.srt.utils.auth.add_api_key_middleware": ("access.refuse_web_sockets", ["app"]),
    "sglang.srt.arg_groups.model_override_base.register_model_override": ("hooks.register", ["architecture"]),
    "sglang.srt.arg_groups.model_override_base.attention_backends_of": ("hooks.choose_attention_backend", ["cfg"]),
    "sglang.srt.arg_groups.model_override_base.resolving_view": ("hooks.choose_attention_backend", ["server_args"]),
    "sglang.srt.plugins.hook_registry.HookRegistry.register": ("hooks.register", ["target", "hook", "hook_type"]),
    "sglang.srt.configs.model_config.is_hybrid_swa_model": (
        "hooks.state_hybrid_layout",
        ["model_architectures", "hf_text_config"],
    ),
    "sglang.srt.configs.model_config.get_hybrid_layer_ids": (
        "hooks.state_hybrid_layout",
        ["model_architectures", "hf_text_config"],
    ),
    "sglang.srt.arg_groups.model_overrides.exaone._exaone_overrides": (
        "hooks.state_hybrid_layout, which makes it do nothing",
        ["server_args", "hf_config"],
    ),
    "sglang.srt.platforms.interface.SRTPlatform.apply_server_args_defaults": (
        "cpu.HanmaruCpuPlatform",
        ["self", "server_args"],
    ),
    "sglang.srt.platforms.interface.SRTPlatform.get_default_attention_backend": ("cpu.HanmaruCpuPlatform", ["self"]),
    "sglang.srt.platforms.interface.SRTPlatform.init_backend": ("cpu.HanmaruCpuPlatform", ["self"]),
    "sglang.srt.platforms.interface.SRTPlatform.get_dispatch_key_name": ("cpu.HanmaruCpuPlatform", ["self"]),
    "sglang.srt.platforms.interface.SRTPlatform.get_compile_backend": ("cpu.HanmaruCpuPlatform", ["self", "mode"]),
    "sglang.srt.platforms.device_mixin.DeviceMixin.get_torch_distributed_backend_str": (
        "cpu.HanmaruCpuPlatform",
        ["self"],
    ),
    "sglang.srt.platforms.device_mixin.DeviceMixin.get_device_total_memory": (
        "cpu.HanmaruCpuPlatform",
        ["self", "device_id"],
    ),
    "sglang.srt.platforms.device_mixin.DeviceMixin.get_current_memory_usage": (
        "cpu.HanmaruCpuPlatform",
        ["self", "device"],
    ),
    "sglang.srt.arg_groups.choices.add_attention_backend_choices": ("cpu.HanmaruCpuPlatform", []),
    "sglang.srt.layers.attention.attention_registry.register_attention_backend": ("cpu.HanmaruCpuPlatform", ["name"]),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.init_forward_metadata": (
        "attention.NativeAttentionBackend",
        ["self", "forward_batch"],
    ),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.forward_extend": (
        "attention.NativeAttentionBackend",
        ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"],
    ),
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.forward_decode": (
        "attention.NativeAttentionBackend",
        ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"],
    ),
    "sglang.srt.mem_cache.swa_memory_pool.SWAKVPool.translate_loc_from_full_to_swa": (
        "attention.NativeAttentionBackend",
        ["self", "kv_indices"],
    ),
    "sglang.srt.mem_cache.swa_memory_pool.SWAKVPool.set_kv_buffer": (
        "attention.NativeAttentionBackend",
        ["self", "layer", "loc_info", "cache_k", "cache_v"],
    ),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool.set_kv_buffer": (
        "attention.NativeAttentionBackend",
        ["self", "layer", "loc_info", "cache_k", "cache_v"],
    ),
    "sglang.srt.mem_cache.memory_pool.KVWriteLoc": ("attention.NativeAttentionBackend", ["loc", "swa_loc"]),
}

FIELDS: dict[str, tuple[str, set[str]]] = {
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch": (
        "attention.NativeAttentionBackend",
        {
            "forward_mode",
            "seq_lens",
            "req_pool_indices",
            "out_cache_loc",
            "extend_prefix_lens",
            "extend_seq_lens",
        },
    ),
}

MENTIONED: dict[str, tuple[str, list[str]]] = {
    # source that must still read or set these words, because nothing else shows them
    "sglang.srt.configs.model_config.is_hybrid_swa_model": ("hooks.state_hybrid_layout", ["is_hybrid_swa"]),
    "sglang.srt.configs.model_config.get_hybrid_layer_ids": ("hooks.state_hybrid_layout", ["hybrid_layer_pattern"]),
    "sglang.srt.arg_groups.model_overrides.exaone": ("hooks.state_hybrid_layout", ["sliding_window_pattern"]),
    "sglang.srt.models.exaone_moe": ("hooks.state_hybrid_layout", ["config.is_moe_layer"]),
    "sglang.srt.models.exaone_moe.ExaoneMoEAttention.__init__": (
        "hooks.narrow_window",
        ["self.sliding_window =", "self.attn = RadixAttention(", "sliding_window_size="],
    ),
    "sglang.srt.layers.radix_attention.RadixAttention.__init__": (
        "attention.NativeAttentionBackend",
        [
            "self.sliding_window_size =",
            "self.tp_q_head_num =",
            "self.qk_head_dim =",
            "self.v_head_dim =",
            "self.scaling =",
            "self.logit_cap =",
            "self.is_cross_attention =",
            "self.attn_type =",
        ],
    ),
    "sglang.srt.mem_cache.swa_memory_pool.SWAKVPool.__init__": (
        "attention.NativeAttentionBackend",
        ["self.layers_mapping"],
    ),
    "sglang.srt.utils.auth.AuthLevel": ("access.decide", ["NORMAL", "ADMIN_FORCE"]),
    "sglang.srt.models.registry": ("models", ["SGLANG_EXTERNAL_MODEL_PACKAGE", "EntryClass"]),
    "sglang.srt.model_executor.model_runner": ("cpu.HanmaruCpuPlatform", ["current_platform.init_backend()"]),
}


@pytest.mark.parametrize("target", CALLABLES)
def test_a_callable_we_hook_override_or_call_keeps_its_parameters(target: str) -> None:
    user, expected = CALLABLES[target]
    found = list(inspect.signature(_resolve(target, user)).parameters)[: len(expected)]
    assert found == expected, f"SGLang changed {target}: it begins with {found}, {user} expects {expected}; see {ENTRY}"


@pytest.mark.parametrize("target", FIELDS)
def test_a_record_we_read_keeps_its_fields(target: str) -> None:
    user, expected = FIELDS[target]
    missing = expected - set(inspect.get_annotations(_resolve(target, user)))
    assert not missing, f"SGLang's {target} lost {sorted(missing)}, which {user} reads; see {ENTRY}"


@pytest.mark.parametrize("target", MENTIONED)
def test_what_we_reach_by_name_alone_is_still_there(target: str) -> None:
    user, words = MENTIONED[target]
    source = inspect.getsource(inspect.unwrap(_resolve(target, user)))
    missing = [word for word in words if word not in source]
    assert not missing, f"SGLang's {target} no longer has {missing}, on which {user} rests; see {ENTRY}"


def test_every_registered_hook_was_applied_and_is_under_contract() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    ours = {
        target
        for target, hooks in HookRegistry._hooks.items()
        if any(hook.__module__.startswith("hanmaru_worker.") for _, hook, _ in hooks)
    }
    assert ours, "SGLang has not loaded our plugin"
    assert ours <= HookRegistry._patched, "SGLang logged why it could not apply a hook of ours"
    assert ours <= set(CALLABLES)


def test_every_method_of_our_platform_and_backend_overrides_one_of_upstreams() -> None:
    from hanmaru_worker.plugin.attention import NativeAttentionBackend
    from hanmaru_worker.plugin.cpu import HanmaruCpuPlatform
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.platforms.interface import SRTPlatform

    for ours, theirs in ((HanmaruCpuPlatform, SRTPlatform), (NativeAttentionBackend, AttentionBackend)):
        public = {name for name, value in vars(ours).items() if callable(value) and not name.startswith("_")}
        gone = sorted(name for name in public if not hasattr(theirs, name))
        assert not gone, f"SGLang's {theirs.__name__} has no {gone} any more; {ours.__name__} overrides them in vain"


def _resolve(target: str, user: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"SGLang has no {target} any more ({error}); {user} needs it, see {ENTRY}")
