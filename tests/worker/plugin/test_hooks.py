"""What the hooks do to configurations and layers that SGLang itself builds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.usefixtures("plugin_loaded"), pytest.mark.timeout(180)]


def model_config(path: Path, **changes: Any) -> Any:
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig(str(path), **changes)


@pytest.fixture
def config(checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    return loaded


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_hybrid_layout_follows_from_the_checkpoint_alone(checkpoint: Path, config: dict[str, Any]) -> None:
    seen = model_config(checkpoint)
    kinds = config["layer_types"]
    assert seen.is_hybrid_swa
    assert seen.swa_attention_layer_ids == [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    assert seen.full_attention_layer_ids == [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    assert seen.sliding_window_size == config["sliding_window"] == 128, "the pools keep the model's own number"


def test_upstreams_flag_still_gives_the_full_kv_configuration(checkpoint: Path) -> None:
    assert not model_config(checkpoint, disable_hybrid_swa_memory=True).is_hybrid_swa


@pytest.mark.parametrize("architecture", ["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"])
def test_a_checkpoint_saved_by_transformers_needs_no_is_moe_layer(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    config["architectures"] = [architecture]
    del config["is_moe_layer"]
    config["mlp_layer_types"] = ["dense"] + ["sparse"] * (config["num_hidden_layers"] - 1)
    seen = model_config(write(tmp_path, config))
    assert seen.hf_config.is_moe_layer == [False] + [True] * (config["num_hidden_layers"] - 1)
    assert seen.is_hybrid_swa


def test_a_model_of_the_family_without_sliding_layers_is_not_hybrid(config: dict[str, Any], tmp_path: Path) -> None:
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    assert not model_config(write(tmp_path, config)).is_hybrid_swa


def test_another_model_is_left_as_it_is(tmp_path: Path) -> None:
    other = {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "sliding_window": 128,
        "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    }
    seen = model_config(write(tmp_path, other))
    assert not seen.is_hybrid_swa
    assert seen.hf_config.sliding_window_pattern == "LLLG"


@pytest.mark.parametrize(("is_sliding", "size"), [(True, 127), (False, -1)])
def test_sliding_layers_attend_128_tokens_and_others_all(is_sliding: bool, size: int) -> None:
    from hanmaru_worker.plugin.hooks import narrow_window

    upstream = 128 if is_sliding else -1
    layer = SimpleNamespace(sliding_window=is_sliding, attn=SimpleNamespace(sliding_window_size=upstream))
    for _ in range(2):  # harmless should upstream subtract by itself one day
        narrow_window(None, layer, SimpleNamespace(sliding_window=128))
        assert layer.attn.sliding_window_size == size


@pytest.mark.parametrize(
    ("chosen", "declared"),
    [(None, {"attention_backend": "fa3"}), ("triton", {})],
)
def test_on_an_a100_the_backend_is_upstreams_choice_or_the_users(
    chosen: str | None, declared: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _declared_on_an_a100(chosen, monkeypatch) == declared


def test_on_an_a100_a_backend_that_reads_the_wrong_pool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="torch_native cannot serve"):
        _declared_on_an_a100("torch_native", monkeypatch)


def _declared_on_an_a100(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    from hanmaru_worker.plugin import hooks
    from sglang.srt.platforms.interface import SRTPlatform
    from sglang.srt.runtime_context import override_platform

    monkeypatch.setattr(hooks, "current_platform", SRTPlatform())
    arguments = SimpleNamespace(attention_backend=chosen, prefill_attention_backend=None, decode_attention_backend=None)
    with override_platform(is_cuda=True, device_sm=80, is_sm100=False):
        return hooks.choose_attention_backend(arguments, SimpleNamespace(is_hybrid_swa=True))
