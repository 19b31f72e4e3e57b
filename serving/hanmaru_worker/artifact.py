"""What gateways need of a checkpoint, read from its folder: tokenizer, chat template, special tokens, defaults, window.

`launch` reads it once before the engine starts, so that a broken folder is told at once. Nothing is executed: files are
JSON and Jinja source, and only gateways render, in a sandbox.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineSpec
from hanmaru_contracts.wire.worker import Capabilities, ModelArtifact

_SLIDING = "sliding_attention"


def read_artifact(checkpoint: Path) -> ModelArtifact:
    """Raises HanmaruError (CONFIGURATION) when the folder lacks a tokenizer or a chat template."""
    tokenizer_config = _read_json(checkpoint / "tokenizer_config.json")
    return ModelArtifact(
        tokenizer=_read(checkpoint / "tokenizer.json"),
        chat_template=_chat_template(checkpoint, tokenizer_config),
        special_tokens=_special_tokens(_read_optional_json(checkpoint / "special_tokens_map.json") | tokenizer_config),
        generation_defaults=_numbers(_read_optional_json(checkpoint / "generation_config.json")),
    )


def read_capabilities(spec: EngineSpec) -> Capabilities:
    """What the spec's engine can serve; the sliding window is the checkpoint's."""
    config = _read_json(Path(spec.checkpoint) / "config.json")
    config = config.get("text_config", config)
    slides = _SLIDING in config.get("layer_types", ()) or bool(config.get("sliding_window_pattern"))
    return Capabilities(
        context_tokens=spec.context_tokens,
        features=spec.features,
        dtype=spec.dtype,
        page_size=spec.kv_cache.page_size,
        sliding_window_tokens=config.get("sliding_window") if slides else None,
    )


def _chat_template(checkpoint: Path, tokenizer_config: dict[str, Any]) -> str:
    file = checkpoint / "chat_template.jinja"
    if file.exists():
        return _read(file).decode()
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if not isinstance(template, str):
        raise _wrong(f"{checkpoint} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json")
    return template


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like; older files wrap the text in an object."""
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in fields.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _numbers(fields: dict[str, Any]) -> dict[str, float | int | list[int] | bool | None]:
    """The defaults alone; the file also holds versions and remarks."""

    def is_number(value: Any) -> bool:
        return isinstance(value, (bool, int, float)) or value is None

    return {
        name: value
        for name, value in fields.items()
        if not name.startswith("_")
        and (is_number(value) or (isinstance(value, list) and all(isinstance(v, int) for v in value)))
    }


def _read_optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise _wrong(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _wrong(f"{path} does not hold a JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(f"cannot read {path} of the checkpoint: {error.strerror}") from error


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
