"""The native CPU platform's KV pool: upstream's, whose tokens move by plain indexing.

SGLang takes it from `cpu.HanmaruCpuPlatform` for every pool of keys and values, hybrid halves included. Upstream's
own compiles and warms up a Triton copy as soon as there is a draft model.
"""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, move_kv_cache_native


class NativeKvPool(MHATokenToKVPool):  # type: ignore[misc]  # SGLang ships no types
    """Buffers, addressing and writes are upstream's."""

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)
