"""The native CPU platform: everything SGLang asks of a device, answered by plain torch and psutil.

SGLang instantiates the class once in each process. Operators fall to the engine's own torch forms; attention
is `attention.py`, drafting `drafting.py`. Quantisation and graphs are left to their conservative defaults.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices
from sglang.srt.platforms.device_mixin import DeviceCapability, PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from hanmaru_worker.plugin import ATTENTION_BACKEND
from hanmaru_worker.plugin.chains import refuse_other_than_chains
from hanmaru_worker.plugin.host_pools import allow_plain_memory, refuse_other_layouts


class HanmaruCpuPlatform(SRTPlatform):  # type: ignore[misc]  # SGLang ships no types
    """A CPU with nothing but torch: no Triton, no graphs, no compiled engine kernels, gloo between ranks."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def __init__(self) -> None:
        # Before the engine builds its argument parser: `--attention-backend` is checked against this list.
        if ATTENTION_BACKEND not in ATTENTION_BACKEND_CHOICES:
            add_attention_backend_choices([ATTENTION_BACKEND])

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Called after SGLang's own rule for `--device cpu` has put one of its two CPU backends there.

        Neither can serve here: one needs compiled AMX kernels, the other reads the wrong pool (`attention.py`).
        Drafts are drawn, not the likeliest ones taken: the same text comes out, of sampled requests in half the steps.
        """
        if server_args.attention_backend in (None, "intel_amx", "torch_native"):
            server_args.attention_backend = ATTENTION_BACKEND
        if server_args.speculative_algorithm is not None:
            refuse_other_than_chains(server_args)
            if server_args.enable_watermark:
                raise ValueError("--enable-watermark: the native CPU platform does not watermark drafted text")
            server_args.speculative_use_rejection_sampling = True
        if server_args.enable_hierarchical_cache:
            refuse_other_layouts(server_args)

    def get_default_attention_backend(self) -> str:
        """The backend SGLang takes where it asks the platform rather than the arguments."""
        return ATTENTION_BACKEND

    def init_backend(self) -> None:
        """Called once in each process that runs a model, before the model's backend is looked up."""
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        from hanmaru_worker.plugin import moe
        from hanmaru_worker.plugin.attention import NativeAttentionBackend

        register_attention_backend(ATTENTION_BACKEND)(NativeAttentionBackend)
        allow_plain_memory()
        moe.register()

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Drafting with the model's own MTP block; which of its flags, `drafting.py` says."""
        return algorithm == "EAGLE"

    def get_speculative_worker_cls(self, algorithm: str) -> type | None:
        """Asked in each process that runs a model, and only where speculation is asked for."""
        from hanmaru_worker.plugin.drafting import ChainWorker

        return ChainWorker if self.supports_speculative_algorithm(algorithm) else None

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """For the target's pools and the draft's; None is SGLang's own."""
        from hanmaru_worker.plugin.kv_pool import NativeKvPool

        return NativeKvPool if kind == "mha" else None

    def get_dispatch_key_name(self) -> str:
        """Every operator in its plain torch form."""
        return "native"

    def get_torch_distributed_backend_str(self) -> str:
        """What ranks talk through."""
        return "gloo"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """No compilation: its first request would take half a minute."""
        return "eager"

    def get_device(self, device_id: int = 0) -> str:
        """All ranks share the one CPU device."""
        return "cpu"

    def get_device_name(self, device_id: int = 0) -> str:
        """For logs and metrics."""
        return "cpu"

    def get_device_capability(self, device_id: int = 0) -> DeviceCapability | None:
        """A CUDA notion."""
        return None

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Bytes of memory of the machine."""
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        """Bytes in use on the machine, so that total minus this is what a new pool may take."""
        memory = psutil.virtual_memory()
        return float(memory.total - memory.available)

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        """Bytes free and bytes in all."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)
