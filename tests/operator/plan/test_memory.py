"""Our count of the engine's cache against SGLang's own: its sizing code, its pools, and a running engine's report."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from types import SimpleNamespace as Bag
from typing import Any

import pytest
from hanmaru_operator.plan.memory import (
    Cell,
    Demand,
    Pools,
    cell,
    model_cache,
    pools_in_budget,
    pools_of_tokens,
)
from hanmaru_testing.engine import running_engine
from hanmaru_testing.planning import CONFIGS, model

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TINY = CONFIGS["tiny"].parent
FLOAT32 = 4
AGREEMENT = 0.02


def tiny_cell(ranks: int = 1, draft_layers: int = 0, *, hybrid: bool = True, dtype_bytes: int = FLOAT32) -> Cell:
    facts = model("tiny")
    return cell(
        facts,
        attention_ranks=ranks,
        layers=range(facts.layers),
        draft_layers=draft_layers,
        hybrid=hybrid,
        dtype_bytes=dtype_bytes,
    )


def test_k_exaone_needs_48_kib_a_token_and_18_mib_a_sequence() -> None:
    cache = model_cache(model("k-exaone"))
    assert cache.global_token_bytes == 48 * KIB
    assert cache.sequence_bytes == 18 * MIB
    assert cache.bytes(1, 262_144) == pytest.approx(12.0 * GIB, rel=0.01)


@pytest.mark.parametrize(
    ("page", "chunk", "tails", "draft_tokens", "ratio"),
    [(64, 0, 0, 1, 0.285), (64, 2048, 0, 1, 0.309), (64, 2048, 0, 4, 0.339), (64, 2048, 64, 1, 0.379)],
)
def test_sixteen_sequences_of_8k_take_this_share_of_full_attention(
    page: int, chunk: int, tails: int, draft_tokens: int, ratio: float
) -> None:
    demand = Demand(window=128, page_size=page, draft_tokens=draft_tokens, chunk_tokens=chunk, kept_tails=tails)
    facts, tokens = model("k-exaone"), 16 * 8192
    held = facts.global_layers * tokens + facts.sliding_layers * demand.tokens(16)
    assert held / (facts.layers * tokens) == pytest.approx(ratio, abs=0.001)


@pytest.mark.parametrize(("ranks", "times"), [(1, 1), (8, 1), (16, 2), (64, 8)])
def test_ranks_beyond_the_kv_heads_keep_copies(ranks: int, times: int) -> None:
    facts = model("k-exaone")
    each = cell(facts, attention_ranks=ranks, layers=range(48), draft_layers=0, hybrid=True, dtype_bytes=2)
    assert each.global_bytes * ranks == 48 * KIB * times


@pytest.mark.parametrize("draft_layers", [0, 1])
def test_one_pool_for_all_layers_holds_them_all(draft_layers: int) -> None:
    each = tiny_cell(draft_layers=draft_layers, hybrid=False)
    assert each == Cell(global_bytes=512 * (8 + draft_layers), sliding_bytes=0)
    assert pools_in_budget(each, 64 * MIB, 0.0, 16).sliding_tokens == 0


def test_a_padding_page_is_counted() -> None:
    assert Pools(160, 32).bytes(Cell(10, 100), 16) == 176 * 10 + 48 * 100
    assert Pools(160, 0).bytes(Cell(10, 0), 16) == 1760


@pytest.fixture(scope="module")
def sizing() -> Iterator[ModuleType]:
    """SGLang's sizing code on our platform, with our plugin."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about CUDA
        patch.setenv("SGLANG_PLATFORM", "hanmaru_cpu")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.model_executor import pool_configurator

        yield pool_configurator


@dataclass(frozen=True, slots=True)
class Settings:
    ranks: int
    ratio: float
    page: int
    drafts: int = 0
    running: int = 8
    chunk: int = 256


SETTINGS = [
    Settings(ranks=1, ratio=0.5, page=1),
    Settings(ranks=1, ratio=0.4, page=16, drafts=3),
    Settings(ranks=2, ratio=0.3, page=16, running=64, chunk=2048),
    Settings(ranks=4, ratio=0.37, page=64, drafts=5),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sglangs_own_code_makes_the_same_pools(
    sizing: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    theirs = _configurator(sizing, monkeypatch, settings)
    each = tiny_cell(settings.ranks, draft_layers=1 if settings.drafts else 0)

    assert (theirs._full_cell_bytes(), theirs._swa_cell_bytes()) == (each.global_bytes, each.sliding_bytes)
    sized = theirs.calculate_pool_sizes(64 * MIB, settings.page)
    ours = pools_in_budget(each, 64 * MIB, settings.ratio, settings.page)
    assert (sized.full_max_total_num_tokens, sized.swa_max_total_num_tokens) == (
        ours.global_tokens,
        ours.sliding_tokens,
    )
    limited = theirs.calculate_pool_sizes_from_max_tokens(9999, settings.page)
    ours = pools_of_tokens(each, 9999, settings.ratio, settings.page)
    assert (limited.full_max_total_num_tokens, limited.swa_max_total_num_tokens) == (
        ours.global_tokens,
        ours.sliding_tokens,
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sglangs_own_code_asks_for_as_many_sliding_tokens(
    sizing: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    _configurator(sizing, monkeypatch, settings)
    theirs = sizing.compute_swa_request_cap(page_size=settings.page, window=128, attn_dp_size=1)
    demand = Demand(128, settings.page, settings.drafts + 1, settings.chunk, kept_tails=0)
    assert demand.tokens(settings.running) == theirs


def _configurator(sizing: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Any:
    """SGLang's class over the tiny checkpoint's real configuration; its process-wide settings are given by hand."""
    from sglang.srt.configs.model_config import ModelConfig

    drafts = settings.drafts
    bags = {
        "get_parallel": Bag(attn_tp_size=settings.ranks, attn_dcp_size=1),
        "get_schedule": Bag(
            swa_full_tokens_ratio=settings.ratio,
            max_running_requests=settings.running,
            chunked_prefill_size=settings.chunk,
            disable_overlap_schedule=False,
        ),
        "get_memory": Bag(enable_unified_memory=False),
        "get_disagg": Bag(disaggregation_mode="null"),
        "get_spec": Bag(
            speculative_algorithm="EAGLE" if drafts else None,
            speculative_num_draft_tokens=drafts + 1 if drafts else None,
        ),
        "get_alloc_len_per_decode": drafts + 1,
    }
    for name, bag in bags.items():
        monkeypatch.setattr(sizing, name, lambda bag=bag: bag)
    import torch

    config = ModelConfig(str(TINY))
    return sizing.HybridSWAPoolConfigurator(
        Bag(
            model_config=config,
            kv_cache_dtype_str="auto",
            kv_cache_dtype=torch.float32,
            layer_info=Bag(
                full_attention_layer_ids=config.full_attention_layer_ids,
                swa_attention_layer_ids=config.swa_attention_layer_ids,
            ),
            sliding_window_size=128,
            page_size=settings.page,
            is_draft_worker=False,
            spec_algorithm=Bag(
                is_eagle=lambda: bool(drafts), is_standalone=lambda: False, is_dflash_family=lambda: False
            ),
            spec_aux_config=Bag(
                eagle_draft_num_layers=config.num_nextn_predict_layers,
                eagle_draft_swa_num_layers=len(config.swa_attention_layer_ids),
            ),
            fused_entry_bytes=lambda _pool: None,
        )
    )


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("sizing")
@pytest.mark.parametrize("page", [1, 16])
def test_sglangs_pools_take_the_bytes_we_count(page: int) -> None:
    import torch
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    facts, pools = model("tiny"), Pools(4096, 2048)
    pool = SWAKVPool(
        size=pools.global_tokens,
        size_swa=pools.sliding_tokens,
        page_size=page,
        dtype=torch.float32,
        head_num=facts.kv_heads,
        head_dim=facts.head_dim,
        swa_attention_layer_ids=[index for index, window in enumerate(facts.windows) if window],
        full_attention_layer_ids=[index for index, window in enumerate(facts.windows) if not window],
        device="cpu",
    )
    assert sum(pool.get_kv_size_bytes()) == pools.bytes(tiny_cell(), page)


@pytest.mark.timeout(360)
def test_a_running_engine_reports_what_we_count(tmp_path: Path) -> None:
    tokens, ratio, page = 400_000, 0.37, 16
    flags = ["--dtype", "float32", "--skip-tokenizer-init", "--sleep-on-idle", "--log-level", "info"]
    flags += ["--max-total-tokens", str(tokens), "--swa-full-tokens-ratio", str(ratio), "--page-size", str(page)]
    with running_engine(TINY, flags, log_path=tmp_path / "engine.log") as engine:
        log = engine.log()
    ours = pools_of_tokens(tiny_cell(), tokens, ratio, page)
    reported = re.findall(r"SWAKVPool mem usage: ([\d.]+) GB, swa size: (\d+), full size: (\d+)", log)
    assert len(reported) == 1, log[-3000:]
    gigabytes, sliding, full = reported[0]
    assert (int(full), int(sliding)) == (ours.global_tokens, ours.sliding_tokens)
    assert ours.bytes(tiny_cell(), page) / GIB == pytest.approx(float(gigabytes), rel=AGREEMENT)
