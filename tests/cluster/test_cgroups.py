"""Groups are made and removed in every tree of cgroups there is, of either version."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_cluster import cgroups
from hanmaru_cluster.cgroups import Hierarchy

VERSION_2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = """
29 24 0:25 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
30 29 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 29 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
""".lstrip()


@pytest.mark.parametrize(
    ("mountinfo", "names", "has_version_1"),
    [(VERSION_2, [""], False), (VERSION_1, ["unified", "cpu,cpuacct", "memory"], True)],
)
def test_the_trees_are_those_that_are_mounted(mountinfo: str, names: list[str], has_version_1: bool) -> None:
    trees = cgroups.hierarchies(mountinfo)
    assert [tree.root for tree in trees] == [Path("/sys/fs/cgroup") / name for name in names]
    assert cgroups.has_version_1(trees) == has_version_1


def test_a_tree_mounted_twice_counts_once() -> None:
    assert cgroups.hierarchies(VERSION_2 * 2) == [Hierarchy(Path("/sys/fs/cgroup"), is_unified=True)]


@pytest.fixture
def group(real_machine: None) -> Iterator[str]:
    name = f"/hanmaru-test-{uuid.uuid4().hex[:8]}"
    cgroups.make(name, ["a", "b"])
    yield name
    cgroups.remove(name)


def _folders(group: str) -> list[Path]:
    return [tree.root / group.lstrip("/") for tree in cgroups.mounted()]


def test_groups_take_processes_tell_them_and_go_when_they_are_gone(group: str) -> None:
    assert all((folder / child).is_dir() for folder in _folders(group) for child in ("a", "b"))
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        for folder in _folders(group):
            (folder / "a/cgroup.procs").write_text(str(sleeping.pid))
        assert cgroups.processes_in(group) == {sleeping.pid}
        assert cgroups.processes_in(group, leaf="a") == {sleeping.pid}
        assert cgroups.processes_in(group, leaf="b") == set()
        sleeping.kill()
    assert cgroups.remove(group) == []
    assert not any(folder.exists() for folder in _folders(group))


def test_what_a_process_keeps_is_told(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "REMOVAL_DEADLINE_S", 0.2)
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        folder = _folders(group)[0] / "a"
        (folder / "cgroup.procs").write_text(str(sleeping.pid))
        assert folder in cgroups.remove(group)
        sleeping.kill()


def test_controllers_of_version_2_are_handed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On files, because controllers of both versions are never in one machine."""
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(tmp_path, is_unified=True)])
    for folder in (tmp_path, tmp_path / "g", tmp_path / "g/a"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    cgroups.make("/g", ["a"])
    wanted = "+cpu +cpuset +io +memory +pids"
    assert [(folder / "cgroup.subtree_control").read_text() for folder in (tmp_path, tmp_path / "g")] == [wanted] * 2
    assert not (tmp_path / "g/a/cgroup.subtree_control").exists()  # the kubelet's own to hand on


@pytest.mark.parametrize(
    ("handed_down", "pids", "is_closed"),
    [("cpu io memory", "1\n", True), ("cpu io memory", "", False), ("cpu io cpuset memory pids", "1\n", False)],
)
def test_a_group_with_processes_and_controllers_kept_back_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_down: str, pids: str, is_closed: bool
) -> None:
    monkeypatch.setattr(cgroups, "mounted", lambda: [Hierarchy(tmp_path, is_unified=True)])
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    (tmp_path / "cgroup.subtree_control").write_text(f"{handed_down}\n")
    (tmp_path / "cgroup.procs").write_text(pids)
    assert cgroups.closed() == (tmp_path if is_closed else None)
