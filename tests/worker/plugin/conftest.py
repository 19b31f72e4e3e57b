"""SGLang inside the test process, for what needs no server: contracts, configuration, attention over real pools.

And transformers, which engines in processes of their own are compared with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hanmaru_testing.reference import Reference
from hanmaru_worker.plugin import PLATFORM_NAME


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


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Iterator[Reference]:
    """One thread: an engine runs beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Reference(checkpoint)
    torch.set_num_threads(threads)
