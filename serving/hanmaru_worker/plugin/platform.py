"""Whether this process runs on the native CPU platform: SGLang in plain torch, for laptops and CI.

SGLang calls `activate` when `SGLANG_PLATFORM` names the entry point, or when it looks for platforms by
itself. The class is in `cpu.py`, so that declining imports no SGLang.
"""

from __future__ import annotations

import os

from hanmaru_worker.plugin import PLATFORM_NAME


def activate() -> str | None:
    """Qualified name of the class SGLang is to instantiate; None where nobody asked for this platform.

    With `SGLANG_PLATFORM` unset SGLang activates every platform installed, so an unasked-for answer would
    take a GPU machine that merely has this package away from its own platform.
    """
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM_NAME:
        return None
    return "hanmaru_worker.plugin.cpu.HanmaruCpuPlatform"
