"""What `hanmaru up` must know of a checkpoint's folder before it starts anything: can it be served, and how long is it.

A look at small files only; the engine reads the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

ARCHITECTURES = frozenset({"ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"})
"""As the published checkpoints say, and as transformers 5 writes."""
_NEEDED = ("tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that looks servable."""

    folder: Path
    name: str
    """A Kubernetes-like name made of the folder's: the model's name and route on this machine."""
    positions: int
    """Longest sequence the model knows."""
    mtp_layers: int = 0
    """Layers that can draft tokens."""


class _Config(msgspec.Struct):
    architectures: list[str] = []
    max_position_embeddings: int = 0
    num_nextn_predict_layers: int | None = None


def look(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; `HanmaruError` says what is missing or unfit, and what to do."""
    folder = folder.expanduser().absolute()
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise _unfit(folder, "it has no config.json", "name the folder of a checkpoint with --checkpoint")
    try:
        config = msgspec.json.decode(config_file.read_bytes(), type=_Config)
    except msgspec.DecodeError as error:
        raise _unfit(folder, f"its config.json cannot be read: {error}", "save the checkpoint anew") from error
    if not ARCHITECTURES.intersection(config.architectures):
        seen = ", ".join(config.architectures) or "none"
        raise _unfit(folder, f"its architecture is {seen}", f"expected {' or '.join(sorted(ARCHITECTURES))}")
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise _unfit(folder, f"it lacks {', '.join(missing)}", "save the checkpoint anew")
    if config.max_position_embeddings <= 0:
        raise _unfit(folder, "its config.json has no max_position_embeddings", "save the checkpoint anew")
    mtp_layers = config.num_nextn_predict_layers or 0
    return Checkpoint(folder, _name(folder.name), config.max_position_embeddings, mtp_layers)


def _name(folder_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder_name.lower()).strip("-")[:63].strip("-") or "model"


def _unfit(folder: Path, seen: str, to_do: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, f"{folder} cannot be served: {seen}; {to_do}")
