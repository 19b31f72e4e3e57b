"""The layout rules that no tool checks."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30)
    return [name for name in listing.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("source_root", ["platform", "operator", "serving"])
def test_source_roots_hide_no_standard_library_module(source_root: str) -> None:
    assert not (ROOT / source_root / "__init__.py").exists()


def test_wheel_lists_every_package_of_the_source_roots() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    found = {
        str(p.parent.relative_to(ROOT))
        for root in ("platform", "operator", "serving")
        for p in (ROOT / root).glob("*/__init__.py")
    }
    assert set(wheel["packages"]) == found


def test_tests_have_no_packages() -> None:
    # `--import-mode=importlib` gives each test file a name of its own; an __init__.py would tie it to a folder's.
    assert not [n for n in _tracked() if n.startswith("tests/") and n.endswith("__init__.py") and "/hanmaru_" not in n]
