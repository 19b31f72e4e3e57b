"""The cgroups of a cluster, on machines with version 1 (a tree for each controller), 2 (one tree), or both.

`keeper` makes one group for the cluster with one for each node in it, and removes them when every process is gone.
Below a node's the kubelet and runc make their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REMOVAL_DEADLINE_S = 10.0
"""A killed process leaves its group when the kernel has ended it, a moment after it was told to."""
_NEEDED = ("cpu", "cpuset", "io", "memory", "pids")
"""Of version 2; what the kubelet would enable itself, were the groups its own."""
_INHERITED = ("cpuset.cpus", "cpuset.mems")
"""A new cpuset of version 1 is empty, and takes no process, until it is told what it may use."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree of cgroups."""

    root: Path
    is_unified: bool


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Every tree that `/proc/self/mountinfo` lists, each once."""
    found: dict[Path, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, root = after.split()[0], Path(before.split()[4])
        if kind in ("cgroup", "cgroup2"):
            found[root] = Hierarchy(root, kind == "cgroup2")
    return list(found.values())


def mounted() -> list[Hierarchy]:
    """Every tree on this machine, now."""
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def has_version_1(trees: Sequence[Hierarchy]) -> bool:
    """Whether the controllers are those of version 1; a tree of version 2 may be mounted beside them."""
    return any(not hierarchy.is_unified for hierarchy in trees)


def closed() -> Path | None:
    """A tree of version 2 in which no group can be made that does its work; None when there is none such.

    Its root is a group like others, as in a container, and has processes: it cannot hand down what it has not yet.
    """
    for tree in mounted():
        if tree.is_unified and (tree.root / "cgroup.type").exists():
            kept_back = set(_here(tree.root)) - set((tree.root / "cgroup.subtree_control").read_text().split())
            if kept_back and _listed(tree.root):
                return tree.root
    return None


def make(parent: str, children: Sequence[str]) -> None:
    """Make `parent` (`/name`) and its children in every tree. Raises OSError."""
    trees = mounted()
    for hierarchy in trees:
        group = hierarchy.root / parent.lstrip("/")
        for made in (group, *(group / child for child in children)):
            made.mkdir(exist_ok=True)
            if hierarchy.is_unified:
                _enable(made.parent)
            else:
                _inherit(made)


def processes_in(group: str, leaf: str = "") -> set[int]:
    """Pids of what runs in a group or below it, seen from here; only in the groups named `leaf` where that is given."""
    found: set[int] = set()
    for hierarchy in mounted():
        for folder in _descending(hierarchy.root / group.lstrip("/")):
            if not leaf or folder.name == leaf:
                found |= _listed(folder)
    return found


def remove(parent: str) -> list[Path]:
    """Remove the group and all below it; what is still there after REMOVAL_DEADLINE_S, which only processes keep."""
    deadline_s = time.monotonic() + REMOVAL_DEADLINE_S
    while left := _remove_once(parent):
        if time.monotonic() > deadline_s:
            return left
        time.sleep(0.05)
    return []


def _remove_once(parent: str) -> list[Path]:
    left = []
    for hierarchy in mounted():
        for folder in _descending(hierarchy.root / parent.lstrip("/")):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                left.append(folder)
    return left


def _descending(folder: Path) -> Iterator[Path]:
    """The folder and those in it, the innermost first."""
    for name, _, _ in os.walk(folder, topdown=False):
        yield Path(name)


def _listed(folder: Path) -> set[int]:
    try:
        return {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    except OSError:  # the group went meanwhile
        return set()


def _enable(group: Path) -> None:
    """Hand the controllers that are here down to the groups below this one."""
    if wanted := [f"+{name}" for name in _here(group)]:
        (group / "cgroup.subtree_control").write_text(" ".join(wanted))


def _here(group: Path) -> list[str]:
    """The needed ones of a group's controllers."""
    there = (group / "cgroup.controllers").read_text().split()
    return [name for name in _NEEDED if name in there]


def _inherit(group: Path) -> None:
    for name in _INHERITED:
        if (group / name).exists() and not (group / name).read_text().strip():
            (group / name).write_text((group.parent / name).read_text())
