"""docs/install.md, followed word by word on a real API server: every command that needs no GPU, registry or download.

Nodes and kubelets are not there, so nothing it installs runs; what helm, kubectl and the API server say of it is real.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_cluster.build import find_helm, find_programs
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.foreign_kinds import install_foreign_kinds
from hanmaru_testing.go_programs import ROOT
from hanmaru_testing.helm import render

PAGE = ROOT / "docs/install.md"
NOT_HERE = ("make ", "buildah ", "kubectl wait ")
"""Commands that build, push or wait for a download."""
COMMAND_S = 120.0
POD_S = 30.0
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int

    @property
    def is_values(self) -> bool:
        return self.language == "yaml" and not self.text.startswith("apiVersion:")


def blocks() -> list[Block]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(one[1], one[2], text.count("\n", 0, one.start()) + 2) for one in found]


VALUES = [block for block in blocks() if block.is_values]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What went wrong when somebody followed the page from its first line to its last."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "charts").symlink_to(ROOT / "charts")
    (folder / "operator").symlink_to(ROOT / "operator")
    (folder / "values.yaml").write_text(VALUES[0].text)
    programs = folder / "bin"
    programs.mkdir()
    with ControlPlane() as plane:
        for name, program in (
            ("helm", find_helm()),
            ("kubectl", find_programs().kubectl),
            ("hanmaru", ROOT / ".venv/bin/hanmaru"),
        ):
            (programs / name).symlink_to(program)
        install_foreign_kinds(plane.api)
        environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(plane.kubeconfig),
            "HOME": str(folder),
            "PASSWORD": "x",
        }
        yield list(follow(folder, environ))


def follow(folder: Path, environ: dict[str, str]) -> Iterator[str]:
    for block in blocks():
        if block.language == "sh":
            for command in filter(None, map(str.strip, block.text.splitlines())):
                if not command.startswith(NOT_HERE):
                    yield from run(command, block.line, folder, environ)
        elif block.language == "yaml" and not block.is_values:
            yield from run("kubectl apply --validate=strict -f -", block.line, folder, environ, block.text)
            if "kind: Job" in block.text:
                yield from downloader(block.line, folder, environ)


def run(command: str, line: int, folder: Path, environ: dict[str, str], stdin: str = "") -> Iterator[str]:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ, input=stdin, capture_output=True, text=True,
        timeout=COMMAND_S, check=False,
    )  # fmt: skip
    # The doctor's status says how the cluster is: here, where no node runs anything, it is not well.
    well = (0, 1) if command.startswith("hanmaru doctor") else (0,)
    if done.returncode not in well or "Traceback" in done.stderr:
        yield f"{PAGE.name}:{line}: {command}: {done.stderr.strip() or done.stdout.strip()}"


def downloader(line: int, folder: Path, environ: dict[str, str]) -> Iterator[str]:
    """The namespace enforces Pod Security "restricted" by then: the Job's pod has to pass."""
    look = ["kubectl", "get", "pods", "-n", "hanmaru", "-l", "app=k-exaone-download", "-o", "name"]
    deadline = time.monotonic() + POD_S
    while not subprocess.run(look, cwd=folder, env=environ, capture_output=True, check=True).stdout:
        if time.monotonic() > deadline:
            yield f"{PAGE.name}:{line}: the Job makes no pod"
            return
        time.sleep(0.5)


def test_the_page_can_be_followed_from_its_first_command_to_its_last(followed: list[str]) -> None:
    assert followed == []


@pytest.mark.parametrize("block", VALUES, ids=lambda block: f"line {block.line}")
def test_every_piece_of_values_is_taken_by_the_chart(block: Block) -> None:
    values: dict[str, Any] = yaml.safe_load(block.text)
    assert render(values)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (PAGE.parent / link).exists()] == []


def test_what_the_page_quotes_of_the_doctor_is_what_the_doctor_says() -> None:
    sources = [
        *(ROOT / "platform/hanmaru_cli/doctor").glob("*.py"),
        *(ROOT / "operator/hanmaru_operator").rglob("*.py"),
    ]
    said = re.sub(r'\{[^{}\n"]*\}', "…", " ".join(file.read_text(encoding="utf-8") for file in sources))
    said = re.sub(r"\s+", " ", said.replace('"\n', "").replace('\\"', '"'))
    table = PAGE.read_text(encoding="utf-8").partition("## 7.")[2].partition("## 8.")[0]
    quotes = [quote for row in table.splitlines() if row.startswith("| ") for quote in re.findall("`([^`]+)`",
              row.split("|")[2])]  # fmt: skip
    assert len(quotes) > 20
    unknown = []
    for quote in quotes:
        words = re.sub(r"^(FAIL|warn|note) \w+ ?(\w+/…)?", "", quote)
        pieces = [piece.strip(" :") for piece in re.split(r"…|\b\d+\b|nvidia\.com/gpu|\bn\b|: ", words)]
        unknown += [f"{quote}: {piece}" for piece in pieces if len(piece) > 3 and piece not in said]
    assert unknown == []
