"""Whether this process runs on the native CPU platform: SGLang in plain torch, for laptops and CI.

SGLang calls `activate` when `SGLANG_PLATFORM` names the entry point, or when it looks for platforms by
itself. The class is in `cpu.py`, so that declining imports no SGLang.
"""

from __future__ import annotations

import gc
import os

from hanmaru_worker.plugin import PLATFORM_NAME

_COLLECT_AFTER = (10_000, 10, 10)


def activate() -> str | None:
    """Qualified name of the class SGLang is to instantiate; None where nobody asked for this platform.

    With `SGLANG_PLATFORM` unset SGLang activates every platform installed, so an unasked-for answer would
    take a GPU machine that merely has this package away from its own platform.
    """
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM_NAME:
        return None
    # This is called early in the imports, which are most of a start. With Python's own 700 objects between collections
    # they took 8.7 s of CPU, so 7.5 s (medians of interleaved runs, 2026-11-23). It stays so;
    # `--gc-threshold` sets another.
    gc.set_threshold(*_COLLECT_AFTER)
    return "hanmaru_worker.plugin.cpu.HanmaruCpuPlatform"
