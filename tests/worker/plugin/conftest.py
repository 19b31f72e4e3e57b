"""SGLang inside the test process, for what needs no server: contracts, configuration, attention over real pools."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_worker.plugin import PLATFORM_NAME


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The committed tiny K-EXAONE, or the one named in HANMARU_TEST_CHECKPOINT (a deeper one, say)."""
    committed = Path(__file__).parents[3] / "checkpoints" / "tiny-k-exaone"
    return Path(os.environ.get("HANMARU_TEST_CHECKPOINT") or committed)


@pytest.fixture(scope="session")
def plugin_loaded() -> Iterator[None]:
    """SGLang imported on our platform with our hooks applied, as in each of its own processes."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about CUDA
        patch.setenv("SGLANG_PLATFORM", PLATFORM_NAME)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        from sglang.srt.plugins import load_plugins

        load_plugins()
        yield
