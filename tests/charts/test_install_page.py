"""docs/install.md, followed word by word on a real API server: every command that needs no GPU, registry or download.

Nodes and kubelets are not there, so nothing it installs runs; what helm, kubectl and the API server say of it is real.
"""

from __future__ import annotations

import ast
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
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cluster.build import find_helm, find_programs
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_testing.foreign_kinds import install_foreign_kinds
from hanmaru_testing.go_programs import ROOT
from hanmaru_testing.helm import EXAMPLES, render

PAGE = ROOT / "docs/install.md"
DOCTOR = ROOT / "platform/hanmaru_cli/doctor"
NOT_HERE = ("make ", "buildah ", "kubectl wait ", "hanmaru rollout ", "kubectl port-forward ", "curl ")
"""Commands that build, push, or wait for a download or for what runs on nodes."""
COMMAND_S = 120.0
POD_S = 30.0
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """Of a script, all lines; of a fence without a language, those that stand behind a prompt."""
        lines = self.text.splitlines()
        if self.language == "":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip()] if self.language == "sh" else []

    @property
    def is_values(self) -> bool:
        return self.language == "yaml" and not self.text.startswith("apiVersion:")


def blocks() -> list[Block]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
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
        for command in block.commands:
            if not command.startswith(NOT_HERE):
                yield from run(command, block.line, folder, environ)
        if block.language == "yaml" and not block.is_values:
            (folder / "model.yaml").write_text(block.text)  # the page calls one of them so, right after it
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


def test_commands_are_taken_from_fences_with_a_prompt_too() -> None:
    commands = [command for block in blocks() for command in block.commands]
    assert {"kubectl apply -f model.yaml", "hanmaru key new", "helm uninstall hanmaru-crds"} <= {
        command.partition("  ")[0] for command in commands
    }


def test_the_demos_key_is_made_alike_on_the_page_and_in_the_example_and_is_one_word() -> None:
    example = (EXAMPLES / "cpu-demo.yaml").read_text(encoding="utf-8")
    (command,) = [line.removeprefix("#").strip() for line in example.splitlines() if "create secret" in line]
    assert command in [given for block in blocks() for given in block.commands]
    made = re.search(r'key="(\$\(.*\))"', command)
    assert made is not None
    environ = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    stored = subprocess.run(
        ["bash", "-c", f'printf %s "{made[1]}"'], env=environ, capture_output=True, text=True, timeout=COMMAND_S,
        check=True,
    ).stdout  # fmt: skip
    assert re.fullmatch(r"hmk_[-\w]+", stored)


@pytest.mark.parametrize("block", VALUES, ids=lambda block: f"line {block.line}")
def test_every_piece_of_values_is_taken_by_the_chart(block: Block) -> None:
    values: dict[str, Any] = yaml.safe_load(block.text)
    assert render(values)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (PAGE.parent / link).exists()] == []


def findings() -> set[tuple[Mark, str]]:
    """Mark and check of whatever the doctor may print, by its sources; all marks where it decides on the way."""
    found = set()
    for file in DOCTOR.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Finding":
                mark, check = call.args[:2]
                marks = {Mark[name] for name in re.findall(r"Mark\.(\w+)", ast.unparse(mark))} or set(Mark)
                if isinstance(check, ast.Constant):
                    found |= {(one, str(check.value)) for one in marks}
    return found


def quotes() -> list[str]:
    """What the table of section 7 says that the doctor says."""
    table = PAGE.read_text(encoding="utf-8").partition("## 7.")[2].partition("## 8.")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")]
    return [quote for row in rows for quote in re.findall("`([^`]+)`", row)]


def test_a_quote_of_the_doctor_opens_with_a_mark_and_a_check_that_go_together() -> None:
    known = findings()
    opened = [re.match(r"(FAIL|warn|note) (\w+|…)", quote) for quote in quotes()]
    said = [(Mark(one[1]), one[2]) for one in opened if one is not None]
    assert len(said) > 20
    checks = {mark: {check for marked, check in known if marked is mark} | {"…"} for mark in Mark}
    assert [f"{mark} {check}" for mark, check in said if check not in checks[mark]] == []


def test_what_the_page_quotes_of_the_doctor_is_what_the_doctor_says() -> None:
    sources = [*DOCTOR.glob("*.py"), *(ROOT / "operator/hanmaru_operator").rglob("*.py")]
    said = re.sub(r'\{[^{}\n"]*\}', "…", " ".join(file.read_text(encoding="utf-8") for file in sources))
    said = re.sub(r"\s+", " ", said.replace('"\n', "").replace('\\"', '"'))
    unknown = []
    for quote in quotes():
        words = re.sub(r"^(FAIL|warn|note) \w+ ?(\w+/…)?", "", quote)
        pieces = [piece.strip(" :") for piece in re.split(r"…|\b\d+\b|nvidia\.com/gpu|\bn\b|: ", words)]
        unknown += [f"{quote}: {piece}" for piece in pieces if len(piece) > 3 and piece not in said]
    assert unknown == []
