"""Which real clusters there are on this machine: a file for each, locked while anything of the cluster lives.

`keeper` writes and locks it, `real` reads it, `python -m hanmaru_cluster real list` and `… down` go by it. So a cluster
whose processes were all killed is told from a living one without a guess, and what it left is removed by name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hanmaru_contracts.names import ENV_HOME

from hanmaru_cluster import cgroups

PREFIX = "hanmaru-cluster-"
"""Of every folder and cgroup of a cluster; nothing else is ever removed."""


@dataclass(frozen=True, slots=True)
class Record:
    """One cluster."""

    folder: Path
    """Its name is the cluster's."""
    purpose: str
    """Who started it: BY_HAND, or tests."""
    owner: int
    """The process that started it, and whose end ends the cluster."""
    keeper: int = 0
    """The process whose end ends the cluster; SIGTERM makes it do so."""
    init: int = 0
    """The first process inside, through which its namespaces are entered."""

    @property
    def name(self) -> str:
        """Unlike any other's on this machine."""
        return self.folder.name

    @property
    def cgroup(self) -> str:
        """In every hierarchy."""
        return f"/{self.name}"

    @property
    def file(self) -> Path:
        """Where this is written."""
        return _home() / f"{self.name}.json"


BY_HAND = "by hand"


def write(record: Record) -> None:
    """Write or write over the record's file, keeping the file itself, which may be locked."""
    record.file.parent.mkdir(parents=True, exist_ok=True)
    record.file.touch(mode=0o600)
    record.file.write_text(json.dumps({**asdict(record), "folder": str(record.folder)}))


def read(file: Path) -> Record | None:
    """The record in a file; None where the cluster ended meanwhile, or is about to be written."""
    try:
        fields = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Record(**{**fields, "folder": Path(fields["folder"])})


def lock(record: Record) -> int:
    """Hold the record for as long as the returned descriptor, or a copy of it in a child, is open."""
    descriptor = os.open(record.file, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_alive(record: Record) -> bool:
    """Whether a process of the cluster still holds its record, or its owner is about to start one."""
    if record.keeper == 0:
        return Path(f"/proc/{record.owner}").exists()
    try:
        descriptor = os.open(record.file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def known() -> Iterator[Record]:
    """Every cluster that has a record, alive or not."""
    for file in sorted(_home().glob(f"{PREFIX}*.json")):
        if record := read(file):
            yield record


def sweep() -> list[Record]:
    """Remove what clusters left whose every process was killed at once; those clusters."""
    dead = [record for record in known() if not is_alive(record)]
    for record in dead:
        clear(record)
    return dead


def clear(record: Record) -> None:
    """Remove the cgroups, the folder and the record of a cluster without processes; again is no error."""
    assert record.name.startswith(PREFIX), record.name
    cgroups.remove(record.cgroup)
    # A cluster's mounts are in a mount namespace of its own. Were this process inside, or one of them here, deleting
    # the folder would delete what is mounted there: a user's files.
    if f"{record.folder}/" not in Path("/proc/self/mountinfo").read_text():
        shutil.rmtree(record.folder, ignore_errors=True)
    record.file.unlink(missing_ok=True)


def _home() -> Path:
    return Path(os.environ.get(ENV_HOME) or Path.home() / ".cache/hanmaru") / "clusters"
