"""What stands in for SGLang's kernels, called as SGLang calls it; a whole engine drafts in `test_engine_mtp.py`."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hanmaru_worker.plugin import chains

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]

VOCABULARY = 8
WIDTH = 4


@pytest.fixture(scope="module")
def drafting(plugin_loaded: None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's, about Triton
        from hanmaru_worker.plugin import drafting
    return drafting


def flags(**changed: Any) -> SimpleNamespace:
    chain = {
        "attention_backend": None,
        "speculative_algorithm": "EAGLE",
        "speculative_eagle_topk": 1,
        "speculative_use_rejection_sampling": True,
        "speculative_adaptive": False,
        "enable_multi_layer_eagle": False,
        "speculative_accept_threshold_single": 1.0,
        "speculative_accept_threshold_acc": 1.0,
        "enable_watermark": False,
        "enable_hierarchical_cache": False,
        "hicache_mem_layout": "page_first",
        "hicache_io_backend": "kernel",
    }
    return SimpleNamespace(**{**chain, **changed})


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"speculative_eagle_topk": 4}, "--speculative-eagle-topk 4: .* use --speculative-eagle-topk 1"),
        ({"speculative_adaptive": True}, "--speculative-adaptive: .* leave it out"),
        ({"enable_multi_layer_eagle": True}, "--enable-multi-layer-eagle"),
        ({"speculative_accept_threshold_single": 0.5}, "--speculative-accept-threshold-single"),
        ({"speculative_accept_threshold_acc": 0.9}, "--speculative-accept-threshold-acc"),
        ({"enable_watermark": True}, "--enable-watermark"),
        (
            {"enable_hierarchical_cache": True, "hicache_mem_layout": "page_head"},
            "--hicache-mem-layout page_head: .* layer_first and page_first",
        ),
        ({"enable_hierarchical_cache": True, "hicache_io_backend": "direct"}, "--hicache-io-backend direct"),
    ],
)
def test_what_the_platform_cannot_do_is_refused_by_its_flag(changed: dict[str, Any], flag: str) -> None:
    from hanmaru_worker.plugin.cpu import HanmaruCpuPlatform

    platform = HanmaruCpuPlatform()
    platform.apply_server_args_defaults(flags())
    with pytest.raises(ValueError, match=flag):
        platform.apply_server_args_defaults(flags(**changed))


def test_an_engine_that_drafts_draws_its_drafts() -> None:
    from hanmaru_worker.plugin.cpu import HanmaruCpuPlatform

    platform = HanmaruCpuPlatform()
    asked = flags(speculative_eagle_topk=None, speculative_use_rejection_sampling=False)
    platform.apply_server_args_defaults(asked)
    assert asked.speculative_use_rejection_sampling
    assert platform.supports_speculative_algorithm("EAGLE")
    assert not platform.supports_speculative_algorithm("DFLASH")


def test_a_chain_is_laid_out_one_token_behind_another(drafting: Any) -> None:
    mask, positions, rows, children, siblings, tokens = drafting.lay_out_chains(
        torch.tensor([70, 80], dtype=torch.int32),
        None,
        torch.arange(3).repeat(2, 1),
        torch.tensor([[71, 72, 73], [81, 82, 83]]),
        torch.tensor([5, 100]),
        105,
        1,
        3,
        WIDTH,
    )
    assert mask.numel() == 0
    assert positions.tolist() == [5, 6, 7, 8, 100, 101, 102, 103]
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert children.tolist() == [[1, 2, 3, -1]] * 2
    assert siblings.tolist() == [[-1] * WIDTH] * 2
    assert tokens.tolist() == [70, 71, 72, 73, 80, 81, 82, 83]


def sampling(requests: int, **changed: Any) -> SimpleNamespace:
    plain = {
        "is_all_greedy": True,
        "temperatures": torch.ones(requests, 1),
        "top_ks": torch.full((requests,), 1 << 30),
        "top_ps": torch.ones(requests),
        "min_ps": torch.zeros(requests),
        "need_top_k_sampling": False,
        "need_top_p_sampling": False,
        "need_min_p_sampling": False,
        "acc_additive_penalties": None,
        "acc_scaling_penalties": None,
        "logit_bias": None,
    }
    return SimpleNamespace(**{**plain, **changed})


def verify(drafting: Any, drafts: list[list[int]], best: list[list[int]], info: Any, mask: Any = None) -> Any:
    """SGLang's call for requests whose target's choices are `best`; every chain begins with token 0."""
    logits = torch.nn.functional.one_hot(torch.tensor(best).flatten(), VOCABULARY).float() * 5
    tokens = torch.tensor([[0, *chain] for chain in drafts])
    draft_odds = torch.nn.functional.one_hot(tokens[:, 1:], VOCABULARY).float()
    asked = SimpleNamespace(draft_token=tokens.flatten(), draft_token_num=WIDTH, draft_probs=draft_odds)
    batch = SimpleNamespace(sampling_info=info, seq_lens=torch.zeros(len(drafts)))
    return drafting.verify(asked, batch, SimpleNamespace(next_token_logits=logits), mask)


def test_a_verdict_says_tokens_counts_and_rows_as_the_scheduler_reads_them(drafting: Any) -> None:
    predict, counts, rows = verify(
        drafting, [[1, 2, 3], [1, 9 % VOCABULARY, 3]], [[1, 2, 3, 4], [1, 2, 3, 4]], sampling(2)
    )
    assert counts.tolist() == [4, 2]
    assert predict[:4].tolist() == [1, 2, 3, 4]
    assert predict[4:6].tolist() == [1, 2]
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, -1, -1]]
    assert {predict.dtype, counts.dtype, rows.dtype} == {torch.int32}


def test_biases_and_grammars_hold_at_every_token_of_a_chain(drafting: Any) -> None:
    bias = torch.zeros(2, VOCABULARY)
    bias[0, 6] = 100.0
    predict, counts, _ = verify(drafting, [[1, 2, 3]] * 2, [[1, 2, 3, 4]] * 2, sampling(2, logit_bias=bias))
    assert counts.tolist() == [1, 4]
    assert predict[0] == 6

    def forbid_three(logits: torch.Tensor) -> None:
        logits[:, 3] = float("-inf")

    mask = SimpleNamespace(apply=forbid_three)
    predict, counts, _ = verify(drafting, [[1, 2, 3]], [[1, 2, 3, 4]], sampling(1), mask)
    assert counts.tolist() == [3]
    assert predict[2] != 3


def test_a_greedy_request_among_sampled_ones_gets_its_greedy_text(
    drafting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "get_parallel", lambda: SimpleNamespace(tp_group=SimpleNamespace(world_size=1)))
    info = sampling(
        2,
        is_all_greedy=False,
        need_top_k_sampling=True,
        need_min_p_sampling=True,
        top_ks=torch.tensor([1, 1 << 30]),
        min_ps=torch.tensor([0.0, 0.9]),
    )
    for _ in range(20):
        predict, counts, _ = verify(drafting, [[1, 2, 7], [1, 5, 3]], [[1, 2, 3, 4]] * 2, info)
        assert counts.tolist() == [3, 2], "min-p leaves the second request its best tokens alone"
        assert predict[:3].tolist() == [1, 2, 3]
        assert predict[4:6].tolist() == [1, 2]


def test_every_rank_drafts_and_keeps_what_the_first_one_drew(drafting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [torch.tensor([[4], [2]]), torch.tensor([[1, 2, 7, 0]]), torch.tensor([2])]

    def broadcast(values: torch.Tensor, src: int) -> None:
        assert src == 0
        values.copy_(told.pop(0))

    group = SimpleNamespace(world_size=2, broadcast=broadcast)
    monkeypatch.setattr(drafting, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    odds = torch.rand(2, VOCABULARY)
    odds_of_drawn, drawn = drafting.draw_drafts(odds)
    assert drawn.tolist() == [[4], [2]]
    assert odds_of_drawn.tolist() == [[odds[0, 4].item()], [odds[1, 2].item()]]
    info = sampling(1, is_all_greedy=False)
    predict, counts, rows = verify(drafting, [[1, 2, 3]], [[1, 2, 3, 4]], info)
    assert (predict.tolist(), counts.tolist(), rows.tolist()) == ([1, 2, 7, 0], [3], [[0, 1, 2, -1]])
    assert not told


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(5, 1.0, 0.0), (8, 0.7, 0.0), (6, 0.8, 0.2)])
def test_odds_are_those_of_a_request_that_does_not_draft(top_k: int, top_p: float, min_p: float) -> None:
    from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

    rows = 16
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3))
    filters = {
        "top_ks": torch.full((rows,), top_k),
        "top_ps": torch.full((rows,), top_p),
        "min_ps": torch.full((rows,), min_p),
    }
    _, weights, order, *_ = top_k_top_p_min_p_sampling_from_probs_torch(
        torch.softmax(logits / 0.8, -1),
        **filters,
        need_min_p_sampling=True,
        sampling_seed=None,
        positions=torch.zeros(rows),
        return_filtered_probs=True,
    )
    plain = torch.zeros(rows, VOCABULARY).scatter_(1, order, weights)
    drafting_odds = chains.distribution(logits, torch.full((rows, 1), 0.8), **filters)
    assert torch.allclose(drafting_odds, plain / plain.sum(1, keepdim=True), atol=1e-6)
