"""The pinned SGLang still has every name our plugin stands on; a failure says what moved and who used it.

The sources keep the tables complete: a name of SGLang that our plugin imports, hooks or spells without a row here, a
row whose user is not on the page, and a hooked target that the page does not name all fail.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hanmaru_worker.plugin
import pytest
from hanmaru_contracts.names import ENV_TIER_KEY_FILE
from hanmaru_testing.upstream import (
    incomplete_sections,
    is_covered,
    names_on,
    names_spelt,
    names_used,
    refused_call,
    subclasses_of_upstream,
)
from hanmaru_worker.argv import KEYS_AND_DOORS

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

Hook = tuple[str, Callable[..., Any], Any]
"""Target, what is hooked there, and SGLang's `HookType`."""

ENTRY = "docs/sglang-plugin.md"
PAGE = (Path(__file__).parents[3] / ENTRY).read_text()
SOURCES = Path(hanmaru_worker.plugin.__file__).parent

CALLABLES: dict[str, tuple[str, list[str]]] = {
    # target: (who uses it, its first parameters); "..." where it has more without a default, and we do not call it
    "sglang.srt.utils.hf_transformers.config.get_config": ("hooks.state_hybrid_layout", ["model", "trust_remote_code"]),
    "sglang.srt.models.exaone_moe.ExaoneMoEAttention.__init__": ("hooks.narrow_window", ["self", "config", "..."]),
    "sglang.srt.utils.auth.decide_request_auth": (
        "access.decide",
        ["method", "path", "authorization_header", "api_key", "admin_api_key", "auth_level"],
    ),
    "sglang.srt.utils.auth.add_api_key_middleware": ("access.refuse_web_sockets", ["app", "api_key", "admin_api_key"]),
    "sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes": (
        "processes.launch_schedulers",
        ["server_args", "port_args", "run_scheduler_process_func"],
    ),
    "sglang.srt.entrypoints.engine.Engine._launch_detokenizer_subprocesses": (
        "processes.launch_detokenizers",
        ["server_args", "port_args", "run_detokenizer_process_func"],
    ),
    "sglang.srt.runtime_context.reset_context": ("processes.launch_schedulers", []),
    "sglang.srt.runtime_context.get_parallel": ("processes.launch_schedulers", []),
    "sglang.srt.arg_groups.model_override_base.register_model_override": (
        "hooks.choose_attention_backend",
        ["architecture"],
    ),
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
    "sglang.srt.platforms.device_mixin.DeviceMixin.is_out_of_tree": ("hooks.choose_attention_backend", ["self"]),
    "sglang.srt.platforms.interface.PlatformCapabilities": ("cpu.HanmaruCpuPlatform", []),
    "sglang.srt.runtime_context.get_platform": ("hooks.choose_attention_backend", []),
    "sglang.srt.arg_groups.choices.add_attention_backend_choices": ("cpu.HanmaruCpuPlatform", ["iterable"]),
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
    "sglang.kernels.fused_op.BaseFusedOp.register_oot_forward": ("moe.register", ["op_cls", "fn", "platform_key"]),
    "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod.forward_native": (
        "moe.forward_experts",
        ["self", "layer", "dispatch_output"],
    ),
    "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod": ("moe.register", ["..."]),
    "sglang.srt.layers.moe.token_dispatcher.StandardCombineInput": ("moe.forward_experts", ["hidden_states"]),
    "sglang.srt.layers.moe.topk.TopK": ("moe.register", ["top_k", "..."]),
    "sglang.srt.layers.moe.topk.TopK.forward_native": (
        "moe.forward_router",
        ["self", "hidden_states", "router_logits"],
    ),
    "sglang.srt.layers.moe.topk.TopK.routing_inputs": ("moe.forward_router", ["self"]),
    "sglang.srt.layers.moe.topk.StandardTopKOutput": (
        "moe.forward_router",
        ["topk_weights", "topk_ids", "router_logits"],
    ),
    "sglang.srt.layers.moe.topk.capture_routed_experts_if_allowed": (
        "moe.forward_router",
        ["topk_config", "layer_id", "topk_ids"],
    ),
    "sglang.srt.eplb.expert_distribution.get_global_expert_distribution_recorder": ("moe.forward_router", []),
    "sglang.srt.eplb.expert_distribution.ExpertDistributionRecorder.on_select_experts": (
        "moe.forward_router",
        ["self", "topk_ids"],
    ),
    "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.load_to_device_per_layer": (
        "host_pools.load_layer",
        ["self", "device_pool", "host_indices", "device_indices", "layer_id", "io_backend", "is_draft"],
    ),
    "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost.backup_from_device_all_layer": (
        "host_pools.backup_layers",
        ["self", "device_pool", "host_indices", "device_indices", "io_backend"],
    ),
    "sglang.srt.mem_cache.pool_host.common.alloc_with_host_register": (
        "host_pools.plain_memory",
        ["dims", "dtype", "device", "pin_memory", "allocator", "registration_granularity_bytes"],
    ),
    "sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore.build_storage_backup_spec": (
        "tier.domains.keep_domain",
        ["self", "node_id", "pass_prefix_keys"],
    ),
    "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore.build_storage_backup_spec": (
        "tier.domains.keep_domain",
        ["self", "node_id", "pass_prefix_keys"],
    ),
    "sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore.prefetch_anchor_info": (
        "tier.domains.keep_domain",
        ["self", "node_id"],
    ),
    "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore.prefetch_anchor_info": (
        "tier.domains.keep_domain",
        ["self", "node_id"],
    ),
    "sglang.srt.mem_cache.radix_cache.RadixKey": (
        "tier.domains.keep_domain",
        ["token_ids", "extra_key", "is_bigram", "limit", "cache_salt"],
    ),
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._storage_hit_query": (
        "tier.domains.serve_domain",
        ["self", "operation"],
    ),
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._page_transfer": (
        "tier.domains.serve_domain",
        ["self", "operation"],
    ),
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller.HybridCacheController._page_backup": (
        "tier.domains.serve_domain",
        ["self", "operation"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.batch_exists_v2": (
        "tier.storage.TierStorage",
        ["self", "keys", "pool_transfers", "extra_info"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.batch_get_v2": (
        "tier.storage.TierStorage",
        ["self", "transfers", "extra_info"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.batch_set_v2": (
        "tier.storage.TierStorage",
        ["self", "transfers", "extra_info"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.batch_get_v1": (
        "tier.storage.TierStorage",
        ["self", "keys", "host_indices", "extra_info"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.batch_set_v1": (
        "tier.storage.TierStorage",
        ["self", "keys", "host_indices", "extra_info"],
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorage.register_mem_host_pool_v2": (
        "tier.storage.TierStorage",
        ["self", "host_pool", "host_pool_name"],
    ),
    "sglang.srt.mem_cache.hicache_storage.PoolTransferResult": (
        "tier.storage.TierStorage",
        ["kv_hit_pages", "extra_pool_hit_pages", "restorable_prefix_pages"],
    ),
    "sglang.srt.mem_cache.pool_host.base.HostKVCache.get_data_page": (
        "tier.storage.TierStorage",
        ["self", "index", "flat"],
    ),
    "sglang.srt.mem_cache.pool_host.base.HostKVCache.set_from_flat_data_page": (
        "tier.storage.TierStorage",
        ["self", "index", "data_page"],
    ),
    "sglang.srt.platforms.interface.SRTPlatform.supports_speculative_algorithm": (
        "cpu.HanmaruCpuPlatform",
        ["self", "algorithm"],
    ),
    "sglang.srt.platforms.interface.SRTPlatform.get_speculative_worker_cls": (
        "cpu.HanmaruCpuPlatform",
        ["self", "algorithm"],
    ),
    "sglang.srt.platforms.interface.SRTPlatform.get_kv_pool_cls": ("cpu.HanmaruCpuPlatform", ["self", "kind"]),
    "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2.__init__": (
        "drafting.ChainWorker",
        ["self", "server_args", "gpu_id", "nccl_port", "target_worker"],
    ),
    "sglang.srt.models.exaone_moe.ExaoneMoEForCausalLM.set_embed_and_head": (
        "drafting.share_embed_and_head",
        ["self", "embed", "head"],
    ),
    "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func": (
        "drafting.note_slots",
        ["req_pool_indices", "req_to_token", "start_offset", "end_offset", "out_cache_loc", "batch_size"],
    ),
    "sglang.srt.mem_cache.allocation.get_last_loc": (
        "drafting.install",
        ["req_to_token", "req_pool_indices_tensor", "prefix_lens_tensor"],
    ),
    "sglang.srt.mem_cache.allocation.get_last_loc_torch": (
        "drafting.install",
        ["req_to_token", "req_pool_indices_tensor", "prefix_lens_tensor"],
    ),
    "sglang.kernels.ops.speculative.cache_locs.assign_draft_cache_locs_contiguous_func": (
        "drafting.find_slots",
        ["req_pool_indices", "req_to_token", "seq_lens", "out_cache_loc", "topk", "num_cols", "positions", "mrope"],
    ),
    "sglang.kernels.ops.speculative.eagle.fill_bonus_tokens_func": (
        "drafting.note_last_tokens",
        ["accept_tokens", "accept_lens", "bonus_tokens", "accept_stride", "batch_size"],
    ),
    "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_decode_backend": (
        "drafting.draft_attention",
        ["self"],
    ),
    "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_draft_extend_backend": (
        "drafting.extend_attention",
        ["self"],
    ),
    "sglang.srt.speculative.eagle_utils.build_tree_kernel_efficient": (
        "drafting.lay_out_chains",
        [
            "bonus_tokens",
            "parent_list",
            "top_scores_index",
            "draft_tokens",
            "seq_lens",
            "seq_lens_sum",
            "topk",
            "spec_steps",
            "num_verify_tokens",
            "tree_mask_mode",
            "tree_mask_buf",
            "fill_prefix_mask",
        ],
    ),
    "sglang.srt.speculative.eagle_utils.eagle_sample": (
        "drafting.verify",
        [
            "verify_input",
            "batch",
            "logits_output",
            "grammar_mask",
            "uno_target_max_top_k",
            "watermark_state",
            "watermark_full_mask",
        ],
    ),
    "sglang.srt.speculative.spec_utils.fast_sample": (
        "drafting.draw_drafts",
        ["probs", "num_samples", "sampling_seed", "positions", "draft_step"],
    ),
    "sglang.srt.sampling.penaltylib.repetition_penalty.apply_scaling_penalties": (
        "drafting.verify",
        ["logits", "scaling_penalties"],
    ),
    "sglang.srt.runtime_context.get_spec": ("drafting.ChainWorker", []),
    "sglang.srt.distributed.parallel_state.GroupCoordinator.broadcast": (
        "drafting.verify",
        ["self", "input_", "src"],
    ),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup": ("kv_pool.NativeKvPool", ["self"]),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._move_kv_cache_impl": (
        "kv_pool.NativeKvPool",
        ["self", "tgt_loc", "src_loc"],
    ),
    "sglang.srt.mem_cache.memory_pool.move_kv_cache_native": (
        "kv_pool.NativeKvPool",
        ["k_buffer", "v_buffer", "tgt_loc", "src_loc"],
    ),
}

FIELDS: dict[str, tuple[str, set[str]]] = {
    "sglang.srt.layers.moe.token_dispatcher.standard.StandardDispatchOutput": (
        "moe.forward_experts",
        {"hidden_states", "topk_output"},
    ),
    "sglang.srt.layers.moe.moe_runner.base.MoeRunnerConfig": (
        "moe.forward_experts",
        {
            "activation",
            "is_gated",
            "apply_router_weight_on_input",
            "no_combine",
            "gemm1_alpha",
            "gemm1_beta",
            "gemm1_clamp_limit",
            "swiglu_limit",
        },
    ),
    "sglang.srt.layers.moe.topk.TopKConfig": (
        "moe.forward_router",
        {
            "top_k",
            "use_grouped_topk",
            "num_expert_group",
            "correction_bias",
            "custom_routing_function",
            "renormalize",
            "routed_scaling_factor",
            "apply_routed_scaling_factor_on_output",
        },
    ),
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch": (
        "attention.NativeAttentionBackend",
        {
            "forward_mode",
            "seq_lens",
            "req_pool_indices",
            "out_cache_loc",
            "extend_prefix_lens",
            "extend_seq_lens",
            "batch_size",
            "spec_info",
        },
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorageConfig": (
        "tier.storage.TierStorage",
        {
            "tp_rank",
            "tp_size",
            "pp_rank",
            "pp_size",
            "attn_cp_rank",
            "attn_cp_size",
            "is_mla_model",
            "extra_config",
        },
    ),
    "sglang.srt.mem_cache.hicache_storage.HiCacheStorageExtraInfo": ("tier.storage.TierStorage", {"prefix_keys"}),
    "sglang.srt.mem_cache.hicache_storage.PoolTransfer": (
        "tier.storage.TierStorage",
        {"name", "host_indices", "keys", "hit_policy"},
    ),
    "sglang.srt.mem_cache.unified_cache.unified_tree_core.StorageBackupSpec": (
        "tier.domains.keep_domain",
        {"token_ids"},
    ),
    "sglang.srt.speculative.eagle_info.EagleVerifyInput": (
        "drafting.verify",
        {"draft_token", "draft_token_num", "draft_probs"},
    ),
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo": (
        "drafting.verify",
        {
            "is_all_greedy",
            "temperatures",
            "top_ks",
            "top_ps",
            "min_ps",
            "need_top_k_sampling",
            "need_top_p_sampling",
            "need_min_p_sampling",
            "acc_additive_penalties",
            "acc_scaling_penalties",
            "logit_bias",
            "has_watermark_candidates",
        },
    ),
}

MENTIONED: dict[str, tuple[str, list[str]]] = {
    "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod.create_weights": (
        "moe.forward_experts",
        ["w13_weight_n, w13_weight_k = (w13_up_dim, hidden_size)", "w2_weight", "self.with_bias ="],
    ),
    "sglang.srt.layers.moe.token_dispatcher.standard": ("moe.forward_experts", ["topk_ids_local", "-1"]),
    "sglang.srt.layers.moe.topk.TopK.__init__": ("moe.forward_router", ["self.layer_id", "self.enable_waterfill"]),
    "sglang.srt.eplb.expert_distribution": ("moe.forward_router", ["SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL"]),
    # source that must still read or set these words, because nothing else shows them
    "sglang.srt.configs.model_config.is_hybrid_swa_model": ("hooks.state_hybrid_layout", ["is_hybrid_swa"]),
    "sglang.srt.configs.model_config.get_hybrid_layer_ids": ("hooks.state_hybrid_layout", ["hybrid_layer_pattern"]),
    "sglang.srt.arg_groups.model_overrides.exaone": ("hooks.state_hybrid_layout", ["sliding_window_pattern"]),
    "sglang.srt.models.exaone_moe": (
        "hooks.state_hybrid_layout, models",
        ["config.is_moe_layer", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
    ),
    # Of the target's own layers: so the draft's window is narrowed with theirs.
    "sglang.srt.models.exaone_moe_mtp": ("models", ["ExaoneMoEForCausalLMMTP", "self.model = ExaoneMoEModel("]),
    "sglang.srt.runtime_context": ("hooks.choose_attention_backend", ['"device_sm"', '"is_cuda"', '"is_sm100"']),
    "sglang.srt.platforms": ("hooks.choose_attention_backend", ["current_platform"]),
    "sglang.srt.platforms.device_mixin": ("cpu.HanmaruCpuPlatform", ["DeviceCapability", "PlatformEnum", "OOT"]),
    "sglang.srt.plugins.hook_registry.HookType": ("hooks.register", ["AFTER", "AROUND"]),
    "sglang.srt.arg_groups.choices": ("cpu.HanmaruCpuPlatform", ["ATTENTION_BACKEND_CHOICES"]),
    "sglang.srt.layers.radix_attention.AttentionType": ("attention.NativeAttentionBackend", ["DECODER"]),
    "sglang.srt.model_executor.model_runner.ModelRunner": (
        "attention.NativeAttentionBackend",
        ["self.req_to_token_pool", "token_to_kv_pool"],
    ),
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
    "sglang.srt.mem_cache.pool_host.base": ("host_pools.allow_plain_memory", ["HICACHE_HOST_MEMORY_RESERVE_BYTES"]),
    "sglang.srt.mem_cache.pool_host.common": ("host_pools.allow_plain_memory", ["ALLOC_MEMORY_FUNCS"]),
    "sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost": (
        "host_pools.load_layer",
        [
            "ALLOC_MEMORY_FUNCS[",
            "self.device_k_buffers =",
            "self.device_v_buffers =",
            "self.k_data_refs =",
            "self.v_data_refs =",
            "self.target_layer_num =",
            "self.head_num =",
            "self.v_head_dim =",
        ],
    ),
    "sglang.srt.managers.cache_controller": (
        "tier.storage.TierStorage",
        ['"interface_v1"', "batch_get_v1(", "batch_set_v1("],
    ),
    "sglang.srt.managers.cache_controller.StorageOperation": (
        "tier.domains.serve_domain",
        ["self.token_ids =", "self.prefix_keys =", "self.hash_value ="],
    ),
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller": (
        "tier.storage.TierStorage",
        [
            '"prefetch_threshold"',
            '"prefetch_timeout_base"',
            '"prefetch_timeout_per_ki_token"',
            '"hicache_storage_pass_prefix_keys"',
        ],
    ),
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache._start_storage_prefetch_wait": (
        "tier.storage.TierStorage",
        ["operation.stats_requested_tokens", "self.prefetch_timeout_base", "self.prefetch_timeout_per_page"],
    ),
    "sglang.srt.mem_cache.storage_prefetch.StoragePrefetchRetries.pop_ready": (
        "tier.storage.TierStorage",
        ["if interval <= 0:"],
    ),
    "sglang.srt.mem_cache.storage.backend_factory": (
        "tier.storage.TierStorage",
        ["backend_class(storage_config, kwargs)", '"module_path"', '"class_name"'],
    ),
    "sglang.srt.mem_cache.hicache_storage.PoolHitPolicy": (
        "tier.storage.TierStorage",
        ["TRAILING_PAGES", "ALL_PAGES", "BLOCK_GROUPS"],
    ),
    "sglang.srt.mem_cache.hicache_storage.PoolName": (
        "tier.storage.TierStorage",
        ['KV = "kv"', 'SWA = "swa"', 'DRAFT = "draft"', 'DRAFT_SWA = "draft_swa"'],
    ),
    "sglang.srt.speculative.draft_utils.DraftBackendFactory.__init__": (
        "drafting.draft_attention",
        ["self.draft_model_runner =", "self.speculative_num_steps ="],
    ),
    "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker": (
        "attention.DraftSteps",
        ["self.draft_attn_backend.attn_backends[i]", "self.draft_attn_backend.init_forward_metadata(forward_batch)"],
    ),
    "sglang.srt.model_executor.forward_batch_info.ForwardMode": (
        "attention.NativeAttentionBackend",
        ["def is_target_verify", "def is_decode_or_idle", "DRAFT_EXTEND_V2"],
    ),
    "sglang.srt.speculative.eagle_worker_common.run_eagle_verify": (
        "drafting.verify",
        ["new_seq_lens = batch.seq_lens + accept_lens", "accept_tokens = predict[accept_index]"],
    ),
    "sglang.srt.arg_groups.fields.spec": (
        "drafting.ChainWorker",
        [
            "speculative_eagle_topk",
            "speculative_use_rejection_sampling",
            "speculative_adaptive",
            "enable_multi_layer_eagle",
            "speculative_accept_threshold_single",
            "speculative_accept_threshold_acc",
        ],
    ),
    "sglang.srt.arg_groups.fields.exec_": ("cpu.HanmaruCpuPlatform", ["enable_watermark: "]),
    "sglang.srt.arg_groups.fields.memory": (
        "host_pools.refuse_other_layouts",
        ["enable_hierarchical_cache: ", "hicache_mem_layout: ", "hicache_io_backend: "],
    ),
}


DOOR_WORDS = {
    *("host", "port", "ports", "endpoint", "endpoints", "url", "urls", "socket", "server", "bootstrap", "sidecar"),
    *("trust", "remote", "key", "dump", "trace", "traces", "folder"),
}
"""A flag with one of these in its name listens, calls, trusts or writes, until somebody has looked at it."""
HARMLESS = {
    "--debug-tensor-dump-layers", "--disaggregation-decode-host-receive-threshold", "--hicache-host-memory-fraction",
    "--hicache-host-memory-mode", "--media-url-max-file-size-mb",
}  # fmt: skip
"""Looked at: they only tune what other flags begin."""

OWN_METHODS = {"NativeAttentionBackend.begin", "TierStorage.close"}
"""Public methods of our subclasses that no class of SGLang has: by mistake they would override nothing."""

CONTRACT = {
    *CALLABLES,
    *FIELDS,
    *MENTIONED,
    *(f"{target}.{word}" for target, (_, words) in MENTIONED.items() for word in words),
}
"""What `is_covered` looks a name up in: words of a module are names of it."""


@pytest.mark.parametrize("target", CALLABLES)
def test_a_callable_we_hook_override_or_call_keeps_its_parameters(target: str) -> None:
    user, expected = CALLABLES[target]
    known = [name for name in expected if name != "..."]
    parameters = inspect.signature(_resolve(target, user)).parameters
    found = list(parameters)
    said = (
        f"SGLang changed {target}: it takes ({', '.join(found)}), {user} expects ({', '.join(expected)}); see {ENTRY}"
    )
    assert found[: len(known)] == known, said
    added = [each.name for each in list(parameters.values())[len(known) :] if _must_be_given(each)]
    assert "..." in expected or not added, f"{said}. Without a default: {', '.join(added)}"


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


def test_every_flag_that_extra_args_may_not_hold_is_one_of_sglangs() -> None:
    """A name that moved would leave its door open."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = set(parser._option_string_actions)
    assert flags >= KEYS_AND_DOORS, f"SGLang has no {sorted(KEYS_AND_DOORS - flags)} any more: what replaced them?"
    doors = {flag for flag in flags if DOOR_WORDS & {*flag.strip("-").split("-")}}
    assert doors <= KEYS_AND_DOORS | HARMLESS, f"may these be open? {sorted(doors - KEYS_AND_DOORS - HARMLESS)}"


def test_every_name_our_sources_use_is_under_contract() -> None:
    loose = [f"{name} (in {file})" for name, file in names_used(SOURCES).items() if not is_covered(name, CONTRACT)]
    assert not loose, f"add to CALLABLES, FIELDS or MENTIONED, and to {ENTRY} where it is hooked: {', '.join(loose)}"


def test_every_target_our_sources_spell_is_on_the_page() -> None:
    unsaid = [f"{name} (in {file})" for name, file in names_spelt(SOURCES).items() if name not in names_on(PAGE)]
    assert not unsaid, f"{ENTRY} has no entry for {', '.join(unsaid)}"


def test_every_row_names_a_user_that_exists_and_is_on_the_page() -> None:
    users = {user.partition(",")[0] for table in (CALLABLES, FIELDS, MENTIONED) for user, _ in table.values()}
    for user in sorted(users):
        _resolve(f"hanmaru_worker.plugin.{user}", "a row of this test")
    unsaid = sorted(user for user in users if user not in PAGE)
    assert not unsaid, f"{ENTRY} says nothing of {', '.join(unsaid)}: say what each touches, why, and when to drop it"


def test_every_name_on_the_page_is_under_contract() -> None:
    unknown = sorted(name for name in names_on(PAGE) if not is_covered(name, CONTRACT))
    assert not unknown, f"{ENTRY} names what no row of this test checks: {', '.join(unknown)}"


def test_every_entry_of_the_page_says_target_reason_and_end() -> None:
    assert "### " in PAGE
    assert not incomplete_sections(PAGE), f"entries of {ENTRY} without target, why, or when to drop it"


def test_every_hook_of_this_process_was_applied() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    hooks = HookRegistry._hooks.items()
    ours = {target for target, own in hooks if any(hook.__module__.startswith("hanmaru_worker.") for _, hook, _ in own)}
    assert ours, "SGLang has not loaded our plugin"
    assert ours <= HookRegistry._patched, "SGLang logged why it could not apply a hook of ours"


@pytest.fixture
def every_hook(monkeypatch: pytest.MonkeyPatch) -> list[Hook]:
    """What we would register with everything switched on: noted, not applied."""
    from hanmaru_worker.plugin import drafting, hooks
    from sglang.srt.plugins.hook_registry import HookRegistry

    noted: list[Hook] = []
    monkeypatch.setenv(ENV_TIER_KEY_FILE, "/a/key")
    monkeypatch.setattr(HookRegistry, "register", lambda *hook: noted.append(hook))
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    monkeypatch.setattr(hooks, "register_model_override", lambda _architecture: lambda _hook: None)
    hooks.register()
    drafting.install()
    return noted


def test_every_hook_stands_on_the_page_and_in_this_test(every_hook: list[Hook]) -> None:
    ours = {target for target, _, _ in every_hook}
    assert len(ours) > 10
    assert ours <= {*CALLABLES}, f"hooked without a row in CALLABLES: {sorted(ours - set(CALLABLES))}"
    assert ours <= names_on(PAGE), f"hooked without an entry in {ENTRY}: {sorted(ours - names_on(PAGE))}"


def test_every_hook_takes_what_its_target_is_called_with(every_hook: list[Hook]) -> None:
    from sglang.srt.plugins.hook_registry import HookType

    for target, hook, kind in every_hook:
        leading = ["result or original"] if kind in (HookType.AFTER, HookType.AROUND) else []
        refused = refused_call(_original(target), hook, *leading)
        assert not refused, f"SGLang changed {target}: {hook.__qualname__} cannot take its call: {refused}; see {ENTRY}"


def test_every_public_method_of_a_class_of_ours_overrides_one_of_upstreams_and_takes_its_call() -> None:
    for ours in subclasses_of_upstream(_modules()):
        theirs = next(base for base in ours.__mro__ if base.__module__.startswith("sglang."))
        for name, method in vars(ours).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            is_own = f"{ours.__name__}.{name}" in OWN_METHODS
            assert hasattr(theirs, name) != is_own, (
                f"SGLang's {theirs.__name__} {'has' if is_own else 'has no'} {name}: is {ours.__name__}.{name} meant to"
                " override one? OWN_METHODS has what is ours alone"
            )
            if is_own:
                continue
            refused = refused_call(inspect.unwrap(getattr(theirs, name)), method)
            assert not refused, f"SGLang changed {theirs.__name__}.{name}, which {ours.__name__} overrides: {refused}"


def _original(target: str) -> Any:
    """What is hooked, as a hook is called for it: a class method with its class."""
    owner, _, name = target.rpartition(".")
    raw = inspect.getattr_static(_resolve(owner, "a hook"), name)
    return inspect.unwrap(raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw)


def _modules() -> Iterator[Any]:
    package = hanmaru_worker.plugin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's own
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def _must_be_given(parameter: inspect.Parameter) -> bool:
    is_variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and not is_variadic


def _resolve(target: str, user: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"there is no {target} any more ({error}); {user} needs it, see {ENTRY}")
