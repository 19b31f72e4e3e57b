"""The engines a supervisor can run, as a table: how each is started and how it is asked. `supervisor` reads it.

Flags are `argv`'s and `furiosa`'s; here stand routes and what is known of their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanmaru_contracts.wire.engine_spec import EngineSpec, EngineType

from hanmaru_worker import argv, furiosa
from hanmaru_worker.engine import Interface
from hanmaru_worker.report import read_furiosa_report, read_report
from hanmaru_worker.settings import GroupRank


@dataclass(frozen=True, slots=True)
class Launch:
    """What a start depends on."""

    spec: EngineSpec
    rank: GroupRank
    host: str
    port: int
    config_file: Path
    """With the engine's keys."""
    scratch: Path
    """A private folder."""
    cpus: Sequence[int]
    """Those it may run on."""
    inherited: Mapping[str, str]
    """The supervisor's own environment."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One sort of engine."""

    argv: Callable[[Launch], tuple[str, ...]]
    """Raises HanmaruError (CONFIGURATION) for what it cannot do."""
    environment: Callable[[Launch, Sequence[str]], dict[str, str]]
    """The second argument: addresses of the group's ranks."""
    interface: Callable[[EngineSpec], Interface]


def _sglang_argv(launch: Launch) -> tuple[str, ...]:
    return argv.to_argv(launch.spec, launch.rank, host=launch.host, port=launch.port, config_file=launch.config_file)


def _sglang_environment(launch: Launch, peers: Sequence[str]) -> dict[str, str]:
    return argv.to_environment(
        launch.spec,
        launch.rank,
        host=launch.host,
        scratch=launch.scratch,
        cpus=launch.cpus,
        inherited=launch.inherited,
        peers=peers,
    )


def _sglang_interface(_spec: EngineSpec) -> Interface:
    return Interface(
        generate_path="/generate",
        generate_body={"input_ids": [1], "sampling_params": {"max_new_tokens": 1, "temperature": 0}},
        # While it is busy any token on its way is the answer, so it costs nothing then.
        alive_path="/health_generate",
        # The cheapest route: the server reads a shared-memory page and asks nobody (2-3 ms seen).
        report_path="/v1/loads?include=core",
        read_report=read_report,
        # It would show both keys to whoever has one.
        closed_path="/server_info",
    )


def _furiosa_argv(launch: Launch) -> tuple[str, ...]:
    return furiosa.to_argv(launch.spec, launch.rank, host=launch.host, port=launch.port, config_file=launch.config_file)


def _furiosa_interface(spec: EngineSpec) -> Interface:
    return Interface(
        generate_path="/v1/completions",
        generate_body={"model": spec.route, "prompt": [1], "max_tokens": 1, "temperature": 0},
        alive_path="/health",
        report_path="/metrics",
        # Its page says nothing of when its scheduler moved last: an answer is the sign of life.
        read_report=lambda body: read_furiosa_report(body, time.monotonic()),
        closed_path="/version",
    )


ENGINES: Mapping[EngineType, EngineKind] = {
    EngineType.SGLANG: EngineKind(_sglang_argv, _sglang_environment, _sglang_interface),
    EngineType.FURIOSA_LLM: EngineKind(
        _furiosa_argv, lambda launch, _peers: furiosa.to_environment(launch.inherited), _furiosa_interface
    ),
}
