"""Engines as data: what a pod has to know of each program. `hanmaru_worker.engines` has the flags, routes and metrics.

FuriosaLLM's entries follow furiosa-llm 2026.4.0 as published and have not run on hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hanmaru_contracts.wire.engine_spec import EngineType

COMMAND = ("hanmaru", "worker")
"""Of every engine's container: the supervisor, which starts the engine that the spec names."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What differs between engines, as far as pods go."""

    not_downloaded: tuple[str, ...]
    """Patterns of files in a hub's repository that it never reads."""
    group_variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of each pod of a group of several; a pool's `engine.env` may override them."""
    spans_nodes: bool = True
    """Whether one replica may have several pods."""


ENGINES: Mapping[EngineType, EngineFacts] = {
    EngineType.SGLANG: EngineFacts(
        # Serves a Hugging Face folder with safetensors.
        # Pickles are never loaded, and other programs' formats double a download.
        not_downloaded=("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "original/*"),
        # The name a container runtime gives the pod's own interface. Without it gloo and NCCL look the host name up.
        group_variables={"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"},
    ),
    EngineType.FURIOSA_LLM: EngineFacts(
        # Serves a folder with a Furiosa executable bundle (FXB), compiled for its number of devices.
        not_downloaded=(),
        spans_nodes=False,
    ),
}
