from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineSpec, KvCache
from hanmaru_contracts.wire.worker import pack_artifact, unpack_artifact
from hanmaru_worker.artifact import read_artifact, read_capabilities


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / (name.replace("__", "."))
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_checkpoint_gives_what_a_gateway_needs(tmp_path: Path) -> None:
    write(
        tmp_path,
        tokenizer__json='{"model": "한"}',
        tokenizer_config__json={"bos_token": "[BOS]", "eos_token": {"content": "<|end|>"}, "model_max_length": 9},
        chat_template__jinja="{{ messages }}",
        generation_config__json={
            "temperature": 0.6,
            "eos_token_id": [1, 53],
            "do_sample": True,
            "pad_token_id": None,
            "transformers_version": "5.0",
            "_from_model_config": True,
        },
    )
    artifact = read_artifact(tmp_path)
    assert artifact.tokenizer == '{"model": "한"}'.encode()
    assert artifact.chat_template == "{{ messages }}"
    assert artifact.special_tokens == {"bos_token": "[BOS]", "eos_token": "<|end|>"}
    assert artifact.generation_defaults == {
        "temperature": 0.6,
        "eos_token_id": [1, 53],
        "do_sample": True,
        "pad_token_id": None,
    }
    digest, packed = pack_artifact(artifact)
    assert unpack_artifact(packed, digest) == artifact


@pytest.mark.parametrize(
    "template",
    ["T", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "T"}]],
)
def test_older_checkpoints_keep_the_template_among_the_tokenizers_settings(tmp_path: Path, template: Any) -> None:
    write(tmp_path, tokenizer__json="{}", tokenizer_config__json={"chat_template": template})
    write(tmp_path, special_tokens_map__json={"bos_token": "<s>"})
    artifact = read_artifact(tmp_path)
    assert artifact.chat_template == "T"
    assert artifact.special_tokens == {"bos_token": "<s>"}
    assert artifact.generation_defaults == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "tokenizer_config.json"),
        ({"tokenizer_config__json": {"chat_template": "T"}}, "tokenizer.json"),
        ({"tokenizer_config__json": "{", "tokenizer__json": "{}"}, "is not JSON"),
        ({"tokenizer_config__json": "[]", "tokenizer__json": "{}"}, "JSON object"),
        ({"tokenizer_config__json": {}, "tokenizer__json": "{}"}, "no chat template"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(HanmaruError, match=message) as wrong:
        read_artifact(write(tmp_path, **files))
    assert wrong.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}, 128),
        ({"text_config": {"sliding_window": 128, "layer_types": ["sliding_attention"]}}, 128),
        ({"sliding_window": 4096, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 128, "sliding_window_pattern": "LLLG"}, 128),
        ({}, None),
    ],
)
def test_the_window_is_the_sliding_layers(tmp_path: Path, config: dict[str, Any], window: int | None) -> None:
    write(tmp_path, config__json=config)
    spec = EngineSpec(
        model=ModelRef(namespace="a", name="b"),
        route="b",
        checkpoint=str(tmp_path),
        context_tokens=4096,
        kv_cache=KvCache(page_size=16),
        features=("hybrid-kv",),
        dtype="float32",
    )
    found = read_capabilities(spec)
    assert found.sliding_window_tokens == window
    assert (found.context_tokens, found.page_size, found.dtype, found.features) == (4096, 16, "float32", ("hybrid-kv",))
