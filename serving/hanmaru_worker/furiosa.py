"""An engine spec -> furiosa-llm's command and environment. Pure; `engines` calls it.

Options are those of furiosa-llm 2026.4.0 as published; none of it has run on an NPU. The key reaches the engine through
`furiosa_main`, because its command line is the only place where furiosa-llm itself takes one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import EngineSpec

from hanmaru_worker.argv import SECRET_PLACES, TIER_PLACES, refuse_reserved
from hanmaru_worker.settings import GroupRank

_KEYS_AND_DOORS = frozenset({
    # Ours to set.
    "--api-key", "--host", "--port", "--served-model-name", "--revision", "--allowed-origins", "--devices",
    # Prompts in logs or kept for whoever has the key; files of the pod in prompts; listeners without our key.
    "--enable-payload-logging", "--uvicorn-log-level", "--enable-responses-api-store", "--allowed-local-media-path",
    "--experimental-kv-transfer-config",
    # It knows no salt, so one tenant's prompts would be found in another's cache.
    "--enable-prefix-caching",
    # Answers that no model gave.
    "--use-mock-backend",
})  # fmt: skip
"""Flags a spec's `extra_args` may not hold."""


def to_argv(
    spec: EngineSpec, rank: GroupRank, *, host: str, port: int, config_file: Path, python: str = sys.executable
) -> tuple[str, ...]:
    """The engine's command line. Raises HanmaruError (CONFIGURATION): a reserved flag, a group of several, MTP.

    The bundle beside the checkpoint fixes the tensor group, pages and pools: what the spec plans of them is not told.
    """
    refuse_reserved(spec.extra_args, _KEYS_AND_DOORS)
    if rank.size > 1:
        raise _wrong(f"furiosa-llm runs on one machine, and the group has {rank.size} ranks")
    if spec.draft_tokens is not None:
        raise _wrong("draftTokens is set, and speculation with furiosa-llm is experimental and not offered")
    flags = ["--served-model-name", spec.route, "--host", host, "--port", str(port)]
    flags += ["--max-model-len", str(spec.context_tokens), "--max-concurrency", str(spec.max_running_requests)]
    for flag, size in (
        ("--pipeline-parallel-size", spec.parallelism.pipeline),
        ("--data-parallel-size", spec.parallelism.data),
    ):
        if size > 1:
            flags += [flag, str(size)]
    if spec.reasoning_parser is not None:
        flags += ["--reasoning-parser", spec.reasoning_parser]
    if spec.tool_call_parser is not None:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_call_parser]
    flags += ["--no-enable-prefix-caching", "--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"]
    program = (python, "-m", "hanmaru_worker.furiosa_main", str(config_file))
    return (*program, "serve", spec.checkpoint, *flags, *spec.extra_args)


def to_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """All variables of the engine's process."""
    environment = {name: value for name, value in inherited.items() if name not in SECRET_PLACES | TIER_PLACES}
    # The last one would serve routes that empty the cache.
    return environment | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "FURIOSA_SERVER_DEV_MODE": "0"}


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
