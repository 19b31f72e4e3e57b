"""Who gets the CPU platform, and what importing the package costs those who do not."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from hanmaru_worker.plugin import PLATFORM_NAME
from hanmaru_worker.plugin.platform import activate


@pytest.mark.parametrize("selected", [None, "", "some_other_platform"])
def test_a_machine_that_did_not_ask_keeps_its_own_platform(
    selected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    if selected is not None:
        monkeypatch.setenv("SGLANG_PLATFORM", selected)
    assert activate() is None


def test_the_entry_points_are_the_ones_sglang_looks_for() -> None:
    (platform,) = entry_points(group="sglang.srt.platforms", name=PLATFORM_NAME)
    assert platform.value == "hanmaru_worker.plugin.platform:activate"
    (hooks,) = entry_points(group="sglang.srt.plugins", name="hanmaru")
    assert hooks.value == "hanmaru_worker.plugin.hooks:register"


@pytest.mark.parametrize("module", ["hanmaru_worker", "hanmaru_worker.plugin", "hanmaru_worker.plugin.platform"])
def test_declining_imports_neither_torch_nor_sglang(module: str) -> None:
    code = f"import {module}, sys; print([name for name in ('torch', 'sglang') if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
