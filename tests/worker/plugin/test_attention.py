"""The backend over SGLang's own pools, against attention written out for one query at a time.

The two pools number their slots differently and every slot not in use holds NaN, so that a read at a location of
the wrong pool, or of a key outside the window, cannot pass.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

HEADS, KV_HEADS, DIM = 4, 2, 8
SLIDING, FULL = 0, 1
KEYS_BEFORE = 127
CONTEXT = 1024
SCALE = DIM**-0.5


class Sequences:
    """Several sequences' keys and values, in SGLang's pools and beside them in order."""

    def __init__(self, dtype: torch.dtype) -> None:
        from hanmaru_worker.plugin.attention import NativeAttentionBackend
        from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

        self.slots = 4096
        self.random = torch.Generator().manual_seed(7)
        self.pool = SWAKVPool(
            size=self.slots,
            size_swa=self.slots,
            page_size=1,
            dtype=dtype,
            head_num=KV_HEADS,
            head_dim=DIM,
            swa_attention_layer_ids=[SLIDING],
            full_attention_layer_ids=[FULL],
            device="cpu",
        )
        self.pool.register_mapping(
            torch.cat([torch.randperm(self.slots + 1, generator=self.random), torch.tensor([-1])])
        )
        for layer in (SLIDING, FULL):
            self.pool.get_key_buffer(layer).fill_(torch.nan)
            self.pool.get_value_buffer(layer).fill_(torch.nan)
        self.free = (torch.randperm(self.slots, generator=self.random) + 1).tolist()
        self.dtype = dtype
        self.table = torch.zeros((8, CONTEXT), dtype=torch.int32)
        self.kept: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        requests = SimpleNamespace(req_to_token=self.table)
        self.runner = SimpleNamespace(req_to_token_pool=requests, token_to_kv_pool=self.pool)
        self.backend = NativeAttentionBackend(self.runner)

    def step(self, brings: dict[int, int], mode: str = "EXTEND") -> float:
        """Run one forward in which each sequence brings so many tokens; the largest error of either layer."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        prefix = {request: len(self.kept.get((FULL, request), [])) for request in brings}
        slots = self._new_slots(brings, prefix)
        counted = {request: 0 if mode == "TARGET_VERIFY" else count for request, count in brings.items()}
        batch = SimpleNamespace(
            forward_mode=ForwardMode[mode],
            req_pool_indices=torch.tensor(list(brings)),
            seq_lens=torch.tensor([prefix[request] + counted[request] for request in brings]),
            extend_prefix_lens=torch.tensor(list(prefix.values())),
            extend_seq_lens=torch.tensor(list(brings.values())),
            out_cache_loc=torch.tensor(slots),
            spec_info=SimpleNamespace(draft_token_num=next(iter(brings.values()))),
        )
        self.backend.init_forward_metadata(batch)
        forward = self.backend.forward_decode if mode == "DECODE" else self.backend.forward_extend
        return max(self._layer_error(layer, brings, prefix, forward) for layer in (SLIDING, FULL))

    def draft(self, requests: list[int], steps: int) -> float:
        """Run all drafts but the first, one token of each sequence after another; the largest error of either layer."""
        from hanmaru_worker.plugin.attention import DraftSteps

        brings = dict.fromkeys(requests, 1)
        prefix = {request: len(self.kept[FULL, request]) for request in requests}
        slots = self._new_slots(dict.fromkeys(requests, steps), prefix)
        drafts = DraftSteps(self.runner, steps)
        drafts.init_forward_metadata(
            SimpleNamespace(
                batch_size=len(requests),
                req_pool_indices=torch.tensor(requests),
                seq_lens=torch.tensor(list(prefix.values())),
                out_cache_loc=torch.tensor(slots),
            )
        )
        errors = []
        for step, backend in enumerate(drafts.attn_backends):
            have = {request: length + step for request, length in prefix.items()}
            errors += [self._layer_error(layer, brings, have, backend.forward_decode) for layer in (SLIDING, FULL)]
        assert len(errors) == 2 * (steps - 1)
        return max(errors)

    def _new_slots(self, brings: dict[int, int], prefix: dict[int, int]) -> list[int]:
        slots = []
        for request, count in brings.items():
            taken = [self.free.pop() for _ in range(count)]
            self.table[request, prefix[request] : prefix[request] + count] = torch.tensor(taken, dtype=torch.int32)
            slots += taken
            self._forget_before(request, prefix[request] - KEYS_BEFORE)
        return slots

    def _forget_before(self, request: int, position: int) -> None:
        """What the engine does to the sliding pool behind the window: the slots become somebody else's."""
        for old in self.table[request, : max(0, position)].tolist():
            slot = self.pool.translate_loc_from_full_to_swa(torch.tensor([old]))
            self.pool.get_key_buffer(SLIDING)[slot] = torch.nan
            self.pool.get_value_buffer(SLIDING)[slot] = torch.nan

    def _layer_error(self, layer_id: int, brings: dict[int, int], prefix: dict[int, int], forward: Any) -> float:
        from sglang.srt.layers.radix_attention import RadixAttention

        window = KEYS_BEFORE if layer_id == SLIDING else -1
        layer = RadixAttention(HEADS, DIM, SCALE, KV_HEADS, layer_id, sliding_window_size=window)
        rows = sum(brings.values())
        q = torch.randn(rows, HEADS * DIM, generator=self.random).to(self.dtype)
        k = torch.randn(rows, KV_HEADS, DIM, generator=self.random).to(self.dtype)
        v = torch.randn(rows, KV_HEADS, DIM, generator=self.random).to(self.dtype)
        got = forward(q, k, v, layer, SimpleNamespace()).view(rows, HEADS, DIM).float()

        expected = []
        row = 0
        for request, count in brings.items():
            past = self.kept.setdefault((layer_id, request), [])
            for _ in range(count):
                past.append((k[row].float(), v[row].float()))
                start = max(0, len(past) - 1 - window) if window >= 0 else 0
                expected.append(attend_one(q[row].float().view(HEADS, DIM), past[start:]))
                row += 1
            assert len(past) == prefix[request] + count
        return float((got - torch.stack(expected)).abs().max())


def attend_one(query: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    keys = torch.stack([key for key, _ in seen]).repeat_interleave(HEADS // KV_HEADS, dim=1)
    values = torch.stack([value for _, value in seen]).repeat_interleave(HEADS // KV_HEADS, dim=1)
    weights = torch.softmax(torch.einsum("hd,khd->hk", query, keys) * SCALE, dim=-1)
    return torch.einsum("hk,khd->hd", weights, values)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_prefill_chunks_and_decode_agree_with_one_query_at_a_time(dtype: torch.dtype, bound: float) -> None:
    sequences = Sequences(dtype)
    assert sequences.step({1: 130, 4: 1, 2: 64}) < bound
    assert sequences.step({2: 65, 6: 300, 1: 7}) < bound, "a second chunk over a prefix"
    for _ in range(3):
        assert sequences.step({6: 1, 1: 1, 4: 1, 2: 1}, "DECODE") < bound
    assert sequences.step({4: 1, 3: 129, 6: 1}) < bound, "prefill and decode in one batch"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_drafts_and_their_check_agree_with_one_query_at_a_time(dtype: torch.dtype, bound: float) -> None:
    sequences = Sequences(dtype)
    assert sequences.step({1: 126, 4: 1, 2: 64, 6: 300}) < bound
    for _ in range(3):
        assert sequences.step({6: 4, 1: 4, 4: 4, 2: 4}, "TARGET_VERIFY") < bound
    assert sequences.step({2: 4, 6: 4}, "DRAFT_EXTEND_V2") < bound
    assert sequences.draft([1, 6, 4], steps=3) < bound
    assert sequences.step({1: 4, 4: 4}, "TARGET_VERIFY") < bound, "over the drafts' own keys"


def test_the_comparison_would_notice_a_window_of_129() -> None:
    sequences = Sequences(torch.float32)
    assert sequences.step({1: 128}) < 1e-5
    widened = KEYS_BEFORE + 1
    past = sequences.kept[SLIDING, 1]
    query = torch.randn(HEADS, DIM, generator=sequences.random)
    right, wrong = attend_one(query, past[-KEYS_BEFORE - 1 :]), attend_one(query, past[-widened - 1 :])
    assert torch.equal(right, wrong), "128 tokens fit either window"
    assert sequences.step({1: 1}, "DECODE") < 1e-5
    right, wrong = attend_one(query, past[-KEYS_BEFORE - 1 :]), attend_one(query, past[-widened - 1 :])
    assert float((right - wrong).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [({"logit_cap": 30.0}, "no logit cap"), ({"is_cross_attention": True}, "decoder self-attention only")],
)
def test_what_it_cannot_compute_is_refused(change: dict[str, Any], said: str) -> None:
    from sglang.srt.layers.radix_attention import RadixAttention

    sequences = Sequences(torch.float32)
    layer = RadixAttention(HEADS, DIM, SCALE, KV_HEADS, FULL, **change)
    with pytest.raises(NotImplementedError, match=said):
        sequences.backend.forward_decode(torch.zeros(1, HEADS * DIM), None, None, layer, SimpleNamespace())
    plain = RadixAttention(HEADS, DIM, SCALE, KV_HEADS, FULL)
    with pytest.raises(NotImplementedError, match="has no sinks"):
        sequences.backend.forward_decode(
            torch.zeros(1, HEADS * DIM), None, None, plain, SimpleNamespace(), sinks=torch.zeros(HEADS)
        )
