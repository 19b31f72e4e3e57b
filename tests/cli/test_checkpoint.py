from __future__ import annotations

import json
from pathlib import Path

import pytest
from hanmaru_cli.checkpoint import ARCHITECTURES, look
from hanmaru_contracts.errors import ErrorCode, HanmaruError

CONFIG = {"architectures": ["ExaoneMoEForCausalLM"], "max_position_embeddings": 32768, "anything": {"else": 1}}


def _folder(path: Path, *, config: object = CONFIG, without: str | None = None) -> Path:
    path.mkdir()
    files = {"tokenizer.json": "{}", "chat_template.jinja": "", "model.safetensors": "", "config.json": config}
    for name, content in files.items():
        if name != without:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_checkpoint_of_the_family_is_taken(tmp_path: Path, architecture: str) -> None:
    folder = _folder(tmp_path / "My_Model.v2", config={**CONFIG, "architectures": [architecture]})
    seen = look(folder)
    assert (seen.folder, seen.name, seen.positions) == (folder, "my-model-v2", 32768)


@pytest.mark.parametrize(("said", "layers"), [({}, 0), ({"num_nextn_predict_layers": 1}, 1)])
def test_whether_a_checkpoint_can_draft_is_seen(tmp_path: Path, said: dict[str, int], layers: int) -> None:
    assert look(_folder(tmp_path / "model", config={**CONFIG, **said})).mtp_layers == layers


@pytest.mark.parametrize("folder_name", ["___", "한국어", "-" * 90, "x" * 62 + "-y"])
def test_any_folder_name_makes_a_kubernetes_name(tmp_path: Path, folder_name: str) -> None:
    from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef

    ModelRef(namespace="local", name=look(_folder(tmp_path / folder_name)).name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"without": "config.json"}, "no config.json"),
        ({"without": "tokenizer.json"}, "lacks tokenizer.json"),
        ({"without": "chat_template.jinja"}, "lacks chat_template.jinja"),
        ({"without": "model.safetensors"}, "lacks \\*.safetensors"),
        ({"config": "{"}, "cannot be read"),
        ({"config": "[]"}, "cannot be read"),
        ({"config": {**CONFIG, "architectures": ["LlamaForCausalLM"]}}, "architecture is LlamaForCausalLM"),
        ({"config": {"max_position_embeddings": 1}}, "architecture is none"),
        ({"config": {**CONFIG, "max_position_embeddings": 0}}, "no max_position_embeddings"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(HanmaruError, match=said) as raised:
        look(_folder(tmp_path / "model", **change))
    assert raised.value.code is ErrorCode.CONFIGURATION


def test_a_missing_folder_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(HanmaruError, match="--checkpoint"):
        look(tmp_path / "nowhere")
