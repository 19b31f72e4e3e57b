"""`make generate` and `make verify` know every generator, and each output says whose it is in its first line."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_PROTOC = "generated"
"""Written by a compiler that has a first line of its own."""


def _generators() -> dict[str, str]:
    table: dict[str, str] = runpy.run_path(str(ROOT / "tools/generate.py"))["GENERATORS"]
    return table


def test_every_generator_is_run() -> None:
    assert {f"tools/{file.name}" for file in (ROOT / "tools").glob("generate_*.py")} == set(_generators())


@pytest.mark.parametrize(("script", "output"), _generators().items())
def test_a_generated_file_names_its_generator(script: str, output: str) -> None:
    path = ROOT / output
    of_others = {ROOT / other for other in _generators().values()}
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    files = [file for file in files if file == path or file not in of_others]
    assert files or path.name == OF_PROTOC
    if path.name != OF_PROTOC:
        assert [file for file in files if script not in file.read_text().splitlines()[0]] == []
