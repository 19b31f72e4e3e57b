"""Keeps a real cluster in namespaces of its own and clears up: `python -m hanmaru_cluster.keeper RECORD NODE …`.

`processes` starts it in the place of `supervisor`, and it serves the same commands. Four processes, none with a second
thread, of which any may be killed:

- the keeper waits for the init, then for the stand-by, which removes cgroups, folder and record;
- the stand-by waits for the keeper's end or its word, and kills the init where the keeper was killed;
- the init is the first process of a new process namespace: when it ends, the kernel kills all the others inside, shims
  and containers too, and with the last of them go the mount namespace and the network namespaces mounted in it;
- the supervisor, its child, serves commands until its input ends.

Only when keeper and stand-by are killed at the same moment do empty cgroups and files stay: `records.sweep` finds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from hanmaru_cluster import cgroups, records, supervisor
from hanmaru_cluster.roles import DISK

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SHARED = 4096, 16384, 1 << 18, 1 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets for the whole machine, for good. It finds these values set, and leaves the machine alone."""


def main(file: Path, nodes: list[str]) -> None:
    """Serve a cluster until its supervisor ends, however that comes about; then remove it."""
    record = records.read(file)
    assert record is not None, file
    held = records.lock(record)
    record = dataclasses.replace(record, keeper=os.getpid())
    records.write(record)
    cgroups.make(record.cgroup, nodes)
    told, tell = os.pipe()
    stand_by = os.fork()
    if stand_by == 0:
        os.close(tell)
        _stand_by(record, told)
    os.close(told)
    _check(_LIBC.unshare(_CLONE_NEWPID))
    init = os.fork()
    if init == 0:
        os.close(tell)
        _be_init(record)
    record = dataclasses.replace(record, init=init)
    records.write(record)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: _kill(init))
    os.write(tell, str(init).encode())
    _forget_standard_streams()
    os.waitpid(init, 0)
    os.close(tell)
    if os.waitpid(stand_by, 0)[1] != 0:  # it was killed
        records.clear(record)
    os.close(held)


def _stand_by(record: records.Record, told: int) -> NoReturn:
    """Wait until the keeper closes its end of the pipe, then end what still runs, and clean up."""
    _forget_standard_streams()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    status = 1
    with contextlib.suppress(OSError):
        if init := os.read(told, 32):
            running = _process(int(init))
            os.read(told, 1)
            if running is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(running, signal.SIGKILL)
                select.select([running], [], [])
        records.clear(record)
        status = 0
    os._exit(status)


def _be_init(record: records.Record) -> NoReturn:
    """Have the supervisor do its work, collect what nobody else waits for, and take all with it in the end."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    status = 1
    try:
        _make_mounts(record.folder)
        serving = os.fork()
        if serving == 0:
            supervisor.serve()
            os._exit(0)
        _forget_standard_streams()
        while os.wait()[0] != serving:
            pass
        status = 0
    finally:
        os._exit(status)


def _make_mounts(folder: Path) -> None:
    """A mount namespace in which the programs may write to the places that they know, and no trace stays of it."""
    _check(_LIBC.unshare(_CLONE_NEWNS))
    _mount("", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount("", "/", flags=_MS_REC | _MS_SHARED)  # among themselves: what containerd mounts, its children may see
    _mount("proc", "/proc", kind="proc")
    private = folder / "private"
    for place in ("/run", "/var/log"):
        _mount("tmpfs", place, kind="tmpfs", data="mode=755")
    # The network plugins keep notes below here, and none of them can be told of another place.
    upper, work = private / "upper", private / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    _mount("overlay", "/var/lib", kind="overlay", data=f"lowerdir=/var/lib,upperdir={upper},workdir={work}")
    _make_disk(folder)
    for name, value in _KERNEL_SETTINGS.items():
        file = private / name.replace("/", ".")
        file.write_text(f"{value}\n")
        _mount(str(file), f"/proc/sys/{name}", flags=_MS_BIND)


def _make_disk(folder: Path) -> None:
    """A file system in a file, which goes as fast as one file, whatever images were unpacked in it.

    Seen on 2026-11-22: 42,000 files of two nodes' images took 44 s to delete one by one, and 1.6 s so. The kernel gives
    the loop device back by itself. Where there is none, as in many containers, a folder does.
    """
    DISK.mkdir(parents=True)
    disk, plain = folder / "disk.img", folder / "disk"
    with disk.open("wb") as file:
        file.truncate(shutil.disk_usage(folder).free)
    make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(disk)]
    mount = ["mount", "-o", "loop,noatime,noinit_itable", str(disk), str(DISK)]
    has_mounted = all(_succeeds(command) for command in (make, mount))
    disk.unlink()  # it stays while it is mounted
    if not has_mounted:
        plain.mkdir()
        _mount(str(plain), str(DISK), flags=_MS_BIND)


def _succeeds(command: list[str]) -> bool:
    try:
        return (
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


def _mount(source: str, target: str, *, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(_LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), target)


def _check(result: int, about: str = "") -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)


def _process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _forget_standard_streams() -> None:
    """So that the supervisor alone holds them, and whoever speaks to it notices its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
