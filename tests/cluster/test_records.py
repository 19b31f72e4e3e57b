"""A living cluster is told from a dead one, and clearing up never touches what is not a cluster's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanmaru_cluster import records
from hanmaru_cluster.records import Record
from hanmaru_contracts.names import ENV_HOME


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Of a cluster whose keeper is running, and holds nothing yet."""
    monkeypatch.setenv(ENV_HOME, str(tmp_path / "home"))
    folder = tmp_path / f"{records.PREFIX}x"
    folder.mkdir()
    written = Record(folder, "tests", owner=os.getpid(), keeper=1)
    records.write(written)
    return written


def test_a_record_says_what_was_written(record: Record) -> None:
    assert list(records.known()) == [record]


def test_a_cluster_lives_while_a_process_holds_its_record(record: Record) -> None:
    held = records.lock(record)
    in_a_child = subprocess.Popen(["sleep", "60"], pass_fds=[held])
    os.close(held)
    assert records.is_alive(record)
    assert records.sweep() == []
    in_a_child.kill()
    in_a_child.wait()
    assert not records.is_alive(record)


def test_a_cluster_that_is_about_to_start_lives_while_its_owner_does(record: Record) -> None:
    assert records.is_alive(Record(record.folder, "tests", owner=os.getpid()))
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not records.is_alive(Record(record.folder, "tests", owner=ended.pid))


def test_what_a_dead_cluster_left_is_swept(record: Record) -> None:
    (record.folder / "etcd.log").touch()
    assert records.sweep() == [record]
    assert not record.folder.exists()
    assert list(records.known()) == []
    records.clear(record)  # again is no error


@pytest.fixture
def mounted(real_machine: None, record: Record) -> Iterator[Path]:
    """A user's folder, mounted in the cluster's."""
    theirs = record.folder.parent / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    place = record.folder / "volume"
    place.mkdir()
    subprocess.run(["mount", "--bind", theirs, place], check=True)
    yield theirs
    subprocess.run(["umount", place], check=True)


def test_nothing_is_deleted_through_a_mount(record: Record, mounted: Path) -> None:
    records.clear(record)
    assert (mounted / "file").exists()


def test_only_folders_of_clusters_are_cleared(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        records.clear(Record(tmp_path, "tests", owner=1))
    assert tmp_path.exists()
