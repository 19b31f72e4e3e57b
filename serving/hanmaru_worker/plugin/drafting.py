"""Drafting with the model's MTP block on the native CPU platform: SGLang's EAGLE worker with its kernels in torch.

SGLang asks `cpu.HanmaruCpuPlatform` for the worker when speculation is asked for, in each process that runs a model;
`ChainWorker` puts the functions of this module where upstream has Triton or CUDA, and leaves the order of a step, the
scheduler's part and the pools as they are. What is computed is in `chains.py` and `attention.py`. Chains only: one
draft a position, which is how the family is served; trees are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache import allocation
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_parallel, get_spec
from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

from hanmaru_worker.plugin import chains
from hanmaru_worker.plugin.attention import DraftSteps

ALGORITHM = "EAGLE"
"""How SGLang's flags spell drafting with a model's own MTP block."""

EMBED_AND_HEAD = "sglang.srt.models.exaone_moe.ExaoneMoEForCausalLM.set_embed_and_head"


class ChainWorker(EAGLEWorkerV2):  # type: ignore[misc]  # SGLang ships no types
    """Upstream's worker, which runs as it is once its kernels are replaced."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        chains.refuse_other_than_chains(get_spec())
        install()
        super().__init__(*args, **kwargs)


def install() -> None:
    """Put this module's functions where upstream has kernels that no CPU can run; once a process."""
    targets = {
        EMBED_AND_HEAD: share_embed_and_head,
        "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func": note_slots,
        # Upstream has it in torch, and picks it for its own torch backend alone. Pages of several tokens need it.
        "sglang.srt.mem_cache.allocation.get_last_loc": allocation.get_last_loc_torch,
        "sglang.kernels.ops.speculative.cache_locs.assign_draft_cache_locs_contiguous_func": find_slots,
        "sglang.kernels.ops.speculative.eagle.fill_bonus_tokens_func": note_last_tokens,
        "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_decode_backend": draft_attention,
        "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_draft_extend_backend": extend_attention,
        "sglang.srt.speculative.eagle_utils.build_tree_kernel_efficient": lay_out_chains,
        "sglang.srt.speculative.eagle_utils.eagle_sample": verify,
        "sglang.srt.speculative.spec_utils.fast_sample": draw_drafts,
    }
    for target, hook in targets.items():
        HookRegistry.register(target, hook, HookType.REPLACE)
    HookRegistry.apply_hooks()


def share_embed_and_head(model: Any, embed: torch.Tensor, head: torch.Tensor) -> None:
    """The MTP block reads the target's embedding and head; upstream's method then calls CUDA."""
    model.model.embed_tokens.weight = embed
    model.lm_head.weight = head


def draft_attention(factory: Any) -> DraftSteps | None:
    """For all drafts but the first, which the pass over the last accepted tokens gives."""
    steps = factory.speculative_num_steps
    return DraftSteps(factory.draft_model_runner, steps) if steps > 1 else None


def extend_attention(_factory: Any) -> None:
    """None: the draft model's own backend reads accepted tokens as it reads prompts."""


def note_slots(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Enter newly allocated slots into the engine's table."""
    chains.assign_slots(req_to_token, req_pool_indices, start_offset, end_offset, out_cache_loc)


def find_slots(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,
    mrope: torch.Tensor | None = None,
) -> None:
    """Fill `out_cache_loc` with the slots behind each sequence's end; the caller knows the positions itself."""
    assert positions is None, "asked for on CUDA only"
    found = chains.window_slots(req_to_token, req_pool_indices.to(torch.int64), seq_lens, topk * num_cols)
    out_cache_loc.copy_(found.reshape(-1))


def note_last_tokens(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """Fill `bonus_tokens` with the last token each sequence got."""
    last = accept_tokens.view(batch_size, accept_stride).gather(1, (accept_lens.to(torch.int64) - 1)[:, None])
    bonus_tokens.copy_(last.squeeze(1))


def draw_drafts(
    probs: torch.Tensor,
    num_samples: int = 1,
    *,
    sampling_seed: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    draft_step: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One draft of each row and its probability, both [rows, 1]. Seeds come with deterministic inference, CUDA's."""
    assert num_samples == 1, "a chain has one draft a position"
    drawn = chains.draw(probs)[:, None]
    _agree(drawn)
    return probs.gather(1, drawn), drawn


def lay_out_chains(
    bonus_tokens: torch.Tensor,
    parent_list: Any,
    top_scores_index: torch.Tensor,
    draft_tokens: torch.Tensor,
    seq_lens: torch.Tensor,
    seq_lens_sum: int,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    *_masks: Any,
    **_mask_options: Any,
) -> tuple[torch.Tensor, ...]:
    """Tree mask, positions, the three links and the tokens of one chain a sequence.

    The mask is empty: a chain's tokens see those before them, which is how the backend reads any pass.
    """
    sequences = len(seq_lens)
    columns = torch.arange(num_verify_tokens)
    children = columns + 1
    children[-1] = -1
    return (
        torch.empty(0, dtype=torch.bool),
        (seq_lens[:, None] + columns).reshape(-1).to(torch.int64),
        torch.arange(sequences * num_verify_tokens).view(sequences, num_verify_tokens),
        children.expand(sequences, -1),
        torch.full((sequences, num_verify_tokens), -1),
        torch.cat((bonus_tokens[:, None], draft_tokens), dim=1).reshape(-1),
    )


def verify(
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    uno_target_max_top_k: int | None = None,
    *,
    watermark_state: Any = None,
    watermark_full_mask: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens after each chain position, how many each sequence got, and their rows (-1 past the end); all int32."""
    sampling = batch.sampling_info
    assert watermark_state is None, "refused by the platform"
    logits = logits_output.next_token_logits
    width = verify_input.draft_token_num
    _adjust(logits, sampling, grammar_mask, width)
    sequences = len(batch.seq_lens)
    drafts = verify_input.draft_token.view(sequences, width)[:, 1:].to(torch.int64)
    if sampling.is_all_greedy:
        verdict = chains.greedy(drafts, logits.argmax(-1).view(sequences, width))
    else:
        verdict = _sample(drafts, verify_input.draft_probs, logits, sampling, width)
        _agree(verdict.tokens, verdict.accepted)
    is_accepted = torch.arange(width) <= verdict.accepted[:, None]
    rows = torch.arange(sequences * width).view(sequences, width)
    return (
        verdict.tokens.reshape(-1).to(torch.int32),
        (verdict.accepted + 1).to(torch.int32),
        torch.where(is_accepted, rows, -1).to(torch.int32),
    )


def _adjust(logits: torch.Tensor, sampling: Any, grammar_mask: Any, width: int) -> None:
    """Penalties and biases as of the chain's start, and what a grammar forbids at each of its tokens, in place."""
    from sglang.srt.sampling.penaltylib.repetition_penalty import apply_scaling_penalties

    if sampling.acc_additive_penalties is not None:
        logits.add_(sampling.acc_additive_penalties.repeat_interleave(width, dim=0))
    if sampling.acc_scaling_penalties is not None:
        apply_scaling_penalties(logits, sampling.acc_scaling_penalties.repeat_interleave(width, dim=0))
    if sampling.logit_bias is not None:
        logits.add_(sampling.logit_bias.repeat_interleave(width, dim=0))
    if grammar_mask is not None:
        grammar_mask.apply(logits)


def _sample(
    drafts: torch.Tensor, draft_odds: torch.Tensor, logits: torch.Tensor, sampling: Any, width: int
) -> chains.Verdict:
    def of_rows(values: torch.Tensor, is_needed: bool) -> torch.Tensor | None:
        return values.repeat_interleave(width, dim=0) if is_needed else None

    probabilities = chains.distribution(
        logits,
        sampling.temperatures.repeat_interleave(width, dim=0),
        top_ks=of_rows(sampling.top_ks, sampling.need_top_k_sampling),
        top_ps=of_rows(sampling.top_ps, sampling.need_top_p_sampling),
        min_ps=of_rows(sampling.min_ps, sampling.need_min_p_sampling),
    )
    return chains.sampled(drafts, probabilities.view(len(drafts), width, -1), draft_odds, torch.rand(drafts.shape))


def _agree(*drawn: torch.Tensor) -> None:
    """Make them the first rank's, in place: other ranks' odds may differ in the last bit, and a group must draft, and
    grow by, the same tokens.
    """
    group = get_parallel().tp_group
    if group.world_size > 1:
        for values in drawn:
            group.broadcast(values, src=0)
