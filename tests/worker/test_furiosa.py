from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import Device, EngineSpec, EngineType, Parallelism
from hanmaru_worker.furiosa import to_argv, to_environment
from hanmaru_worker.settings import GroupRank

ALONE = GroupRank()


def spec(**fields: Any) -> EngineSpec:
    given = {
        "model": ModelRef(namespace="team", name="exaone"),
        "route": "exaone",
        "engine": EngineType.FURIOSA_LLM,
        "device": Device.NPU,
        "checkpoint": "/model",
        "context_tokens": 49152,
    }
    return EngineSpec(**given | fields)


def argv(subject: EngineSpec, rank: GroupRank = ALONE) -> tuple[str, ...]:
    return to_argv(subject, rank, host="10.0.0.7", port=30000, config_file=Path("/private/keys.yaml"), python="python")


def test_the_whole_command_line() -> None:
    assert argv(spec()) == (
        *("python", "-m", "hanmaru_worker.furiosa_main", "/private/keys.yaml", "serve", "/model"),
        *("--served-model-name", "exaone", "--host", "10.0.0.7", "--port", "30000"),
        *("--max-model-len", "49152", "--max-concurrency", "16"),
        *("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--no-enable-prefix-caching", "--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
    )


def test_the_bundle_fixes_the_tensor_group_and_only_copies_and_stages_are_told() -> None:
    found = argv(spec(parallelism=Parallelism(tensor=8, pipeline=2, data=4), reasoning_parser=None, extra_args=("-x",)))
    joined = " ".join(found)
    assert "--pipeline-parallel-size 2 --data-parallel-size 4" in joined
    assert "tensor" not in joined
    assert "--reasoning-parser" not in found
    assert found[-1] == "-x"


@pytest.mark.parametrize(
    ("fields", "rank", "message"),
    [
        ({"extra_args": ("--api-key=x",)}, ALONE, "decided by the worker"),
        ({"extra_args": ("--enable-payload",)}, ALONE, "decided by the worker"),
        ({"extra_args": ("--enable-prefix-caching",)}, ALONE, "decided by the worker"),
        ({"extra_args": ("--enable_responses_api_store",)}, ALONE, "decided by the worker"),
        ({"extra_args": ("--allowed-local-media-path", "/")}, ALONE, "decided by the worker"),
        ({"draft_tokens": 3}, ALONE, "speculation"),
        ({}, GroupRank(0, 2, "h:1"), "one machine"),
    ],
)
def test_what_it_cannot_or_must_not_do_is_refused(fields: dict[str, Any], rank: GroupRank, message: str) -> None:
    with pytest.raises(HanmaruError, match=message) as refused:
        argv(spec(**fields), rank)
    assert refused.value.code is ErrorCode.CONFIGURATION


def test_the_engine_inherits_everything_but_secrets_and_the_developers_mode() -> None:
    found = to_environment({"PATH": "/bin", "HANMARU_REPLICA_KEY_FILE": "k", "FURIOSA_SERVER_DEV_MODE": "1"})
    assert found == {
        "PATH": "/bin",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "FURIOSA_SERVER_DEV_MODE": "0",
    }
