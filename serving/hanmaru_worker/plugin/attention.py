"""Attention in plain torch over SGLang's paged KV pools: the CPU platform's backend.

SGLang constructs it once per model runner and calls `init_forward_metadata` before, and `forward_*` in, each
forward pass. It exists because upstream's plain-torch backend writes sliding layers at locations translated to
the sliding pool and reads them at untranslated ones. Here both sides go through one translation, and a sliding
layer touches the keys of its window only: older ones may already belong to another sequence. What is gathered and
how it is attended is in `gathers.py`. Encoders, cross attention, logit caps and attention sinks are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from hanmaru_worker.plugin import ATTENTION_BACKEND
from hanmaru_worker.plugin.gathers import Gather, Lengths, attend, full_gathers, sliding_gathers

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class NativeAttentionBackend(AttentionBackend):  # type: ignore[misc]  # SGLang ships no types
    """One instance serves prefill, chunked prefill over a prefix, mixed batches, decode and the check of drafts."""

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        self._request_slots: torch.Tensor = model_runner.req_to_token_pool.req_to_token
        self._pool: Any = model_runner.token_to_kv_pool
        self._lengths: Lengths | None = None
        self._write: KVWriteLoc | None = None
        self._gathers: dict[tuple[int, bool], list[Gather]] = {}

    def support_triton(self) -> bool:
        """Answered for the engine, which otherwise would use Triton kernels around this backend."""
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Note the pass's lengths and where its tokens are written; gathers follow at the first layer that asks."""
        self.begin(_lengths(forward_batch), forward_batch.out_cache_loc)

    def begin(self, lengths: Lengths, slots: torch.Tensor | None) -> None:
        """As `init_forward_metadata`, for a caller that knows both itself; `slots` are the full pool's."""
        self._lengths = lengths
        self._gathers = {}
        if slots is None:
            self._write = None
        elif isinstance(self._pool, SWAKVPool):
            self._write = KVWriteLoc(slots, self._pool.translate_loc_from_full_to_swa(slots))
        else:
            self._write = KVWriteLoc(slots, None)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Rows [tokens, heads x dim] for prompts or parts of prompts, over what is cached of them."""
        return self._forward(q, k, v, layer, save_kv_cache, extras)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Rows [sequences, heads x dim], one new token each."""
        return self._forward(q, k, v, layer, save_kv_cache, extras)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        save_kv_cache: bool,
        extras: dict[str, Any],
    ) -> torch.Tensor:
        _refuse_unsupported(layer, extras)
        if save_kv_cache and k is not None and v is not None:
            self._pool.set_kv_buffer(layer, self._write, k, v)
        keys = self._pool.get_key_buffer(layer.layer_id)
        values = self._pool.get_value_buffer(layer.layer_id)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = query.new_empty((query.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        for gather in self._layer_gathers(layer, query.dtype):
            attend(query, keys, values, gather, layer.scaling, out)
        return out.view(out.shape[0], -1)

    def _layer_gathers(self, layer: RadixAttention, dtype: torch.dtype) -> list[Gather]:
        """The layer's gathers; all layers with one window in one pool share them within a pass."""
        keys_before = int(layer.sliding_window_size)
        is_translated = isinstance(self._pool, SWAKVPool) and self._pool.layers_mapping[layer.layer_id][1]
        key = (keys_before, is_translated)
        found = self._gathers.get(key)
        if found is None:
            assert self._lengths is not None, "forward before init_forward_metadata"
            if keys_before >= 0:
                plain = sliding_gathers(self._request_slots, self._lengths, keys_before, dtype)
            else:
                plain = full_gathers(self._request_slots, self._lengths, dtype)
            found = [self._translated(gather) for gather in plain] if is_translated else plain
            self._gathers[key] = found
        return found

    def _translated(self, gather: Gather) -> Gather:
        slots = self._pool.translate_loc_from_full_to_swa(gather.slots)
        return Gather(gather.rows, slots.to(torch.int64), gather.bias, gather.is_row)


class DraftSteps:
    """The attention of the drafts after the first: each reads what those before it have just written.

    SGLang's EAGLE worker takes the backend of a step from `attn_backends`.
    """

    def __init__(self, runner: Any, steps: int) -> None:
        self.attn_backends = [NativeAttentionBackend(runner) for _ in range(steps - 1)]
        for backend in self.attn_backends:
            backend.prefill_attention_backend_str = backend.decode_attention_backend_str = ATTENTION_BACKEND

    def init_forward_metadata(self, batch: Any) -> None:
        """Called once for all steps; `batch.out_cache_loc` holds each sequence's slots of all of them."""
        requests = batch.req_pool_indices.to(torch.int64)
        slots = batch.out_cache_loc.view(batch.batch_size, -1)
        lens = batch.seq_lens.tolist()
        for step, backend in enumerate(self.attn_backends):
            backend.begin(Lengths([length + step for length in lens], [1] * len(lens), requests), slots[:, step])


def _refuse_unsupported(layer: RadixAttention, extras: dict[str, Any]) -> None:
    if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has decoder self-attention only")
    if layer.logit_cap:
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has no logit cap (got {layer.logit_cap})")
    if any(value is not None for value in extras.values()):
        raise NotImplementedError(f"layer {layer.layer_id}: this backend has no {', '.join(sorted(extras))}")


def _lengths(batch: ForwardBatch) -> Lengths:
    requests = batch.req_pool_indices.to(torch.int64)
    if batch.forward_mode.is_decode_or_idle():
        lens = batch.seq_lens.tolist()
        return Lengths([length - 1 for length in lens], [1] * len(lens), requests)
    if batch.forward_mode.is_target_verify():
        # The only mode whose lengths leave its own tokens out. They are a chain: each sees those before it.
        lens = batch.seq_lens.tolist()
        return Lengths(lens, [batch.spec_info.draft_token_num] * len(lens), requests)
    return Lengths(batch.extend_prefix_lens.tolist(), batch.extend_seq_lens.tolist(), requests)
