"""Every Dockerfile, ours and the tests': lint-clean, its base an argument, never root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted([*ROOT.glob("images/*/Dockerfile"), *ROOT.glob("tests/cluster/images/*/Dockerfile")])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_a_dockerfile_is_lint_clean(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_a_base_is_an_argument_and_the_last_user_is_10001(dockerfile: Path) -> None:
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    stages = {line.split(" AS ")[1] for line in lines if line.startswith("FROM ") and " AS " in line}
    assert bases <= {"${BASE_IMAGE}", "scratch"} | stages
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    runs = any(line.startswith(("CMD", "ENTRYPOINT")) for line in lines)
    assert not runs or users[-1] == "10001:10001"
