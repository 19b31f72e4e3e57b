"""The pins agree with each other, programs are built once, and ready-made ones are taken before ours."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hanmaru_cluster.build import ENV_ASSETS, PROGRAMS, find_programs, kubernetes_version
from hanmaru_contracts.names import ENV_HOME
from hanmaru_testing.go_programs import GoProgram, built

GO_MOD = (PROGRAMS / "kubernetes/go.mod").read_text()


def test_the_parts_of_kubernetes_are_of_one_version() -> None:
    minor_and_patch = kubernetes_version().removeprefix("v1.")
    replaced = re.findall(r"^\t(\S+) => (\S+) v0\.(\S+)$", GO_MOD, re.MULTILINE)
    assert len(replaced) > 20
    assert all(name == by and version == minor_and_patch for name, by, version in replaced)


def test_etcd_is_the_one_that_kubernetes_was_made_with() -> None:
    versions = dict(re.findall(r"^\t(go\.etcd\.io/etcd/\S+) (\S+)", GO_MOD, re.MULTILINE))
    assert versions["go.etcd.io/etcd/server/v3"] == versions["go.etcd.io/etcd/client/v3"]


def test_programs_in_the_assets_folder_are_taken_and_the_others_built(tmp_path: Path) -> None:
    (tmp_path / "etcd").touch()
    (tmp_path / "kubectl").touch()
    (tmp_path / "kwok").touch()
    ours = find_programs({})
    found = find_programs({ENV_ASSETS: str(tmp_path)})
    assert (found.etcd, found.kubectl) == (tmp_path / "etcd", tmp_path / "kubectl")
    assert (found.kube_apiserver, found.kwok) == (ours.kube_apiserver, ours.kwok)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoProgram:
    """A small one, and an empty cache."""
    monkeypatch.setenv(ENV_HOME, str(tmp_path / "home"))
    module = tmp_path / "module"
    module.mkdir()
    (module / "go.mod").write_text("module small\n\ngo 1.26\n")
    (module / "go.sum").touch()
    (module / "main.go").write_text('package main\n\nfunc main() { println("one") }\n')
    return GoProgram("small", module, ".")


def test_builders_at_once_build_once(program: GoProgram, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(3) as builders:
        paths = set(builders.map(built, [program] * 3))
    assert len(paths) == 1
    assert capfd.readouterr().out.count("Building small") == 1


def test_a_changed_source_or_flag_is_built_anew(program: GoProgram) -> None:
    first = built(program)
    (program.module / "main.go").write_text('package main\n\nfunc main() { println("two") }\n')
    second = built(program)
    assert subprocess.run([first], capture_output=True, text=True, check=True).stderr == "one\n"
    assert subprocess.run([second], capture_output=True, text=True, check=True).stderr == "two\n"
    assert built(GoProgram(program.name, program.module, program.package, ldflags="-s")) not in (first, second)


def test_a_program_that_cannot_be_built_says_why_and_leaves_nothing_to_run(program: GoProgram) -> None:
    (program.module / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    with pytest.raises(RuntimeError, match="undefined: missing"):
        built(program)
    with pytest.raises(RuntimeError, match="undefined: missing"):
        built(program)
